// Package bind shares directories and files of the host with a container.
//
// A shared path reaches the container through the transfer layout, which syscontainer-tools uses as well to add and remove
// paths while the container runs:
//
//	host        /.sharedpath/master               one tmpfs for all containers, mount propagation shared
//	host        /.sharedpath/master/<id>          a container's part of it
//	container   /.sharedpath                      bind of that part: read-only, slave of the host's
//	host        /.sharedpath/midpath/<id>/<hex>   bind of the host path; <hex> is the SHA-256 of the path as written
//	host        /.sharedpath/master/<id>/<hex>    bind of the one above, so that it appears in the container
//	container   <container path>                  bind of /.sharedpath/<hex>
//
// The way is also what makes read-only stick: a mount that propagates into a mount namespace of a less privileged user
// namespace gets its flags locked there (mount_namespaces(7)), and binds of it keep the lock. The root user of a container
// without a user namespace who has CAP_SYS_ADMIN can always make a read-only mount writable again.
//
// Every operation exists in both directions and can be repeated. The package needs Linux 5.12 (mount_setattr(2)).
package bind
