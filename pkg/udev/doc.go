// Package udev keeps the rules that make udev call a helper script of the host whenever a partition comes or goes on a disk
// that a container has. The script is /lib/udev/syscontainer-tools_wrapper; which rules a container needs is the caller's to
// decide, with [WholeDisk].
//
// The rules of all containers are lines of one file, which the program syscontainer-tools changes as well. What was there stays
// byte for byte, but for the lines of the container in question. The file is replaced as a whole under the lock of that program,
// so a reader finds the old one or the new one. udevd is told to read it again when it has changed.
//
// # Pattern
//
// A line is what syscontainer-tools writes, and one more match. For the disk sdb:
//
//	KERNEL=="sdb*",ACTION=="add|remove", ENV{DEVTYPE}=="partition", SUBSYSTEM=="block", RUN{program}+="...", DEVPATH=="*/sdb/*"
//
// KERNEL alone also catches the partitions of the disks sdba and sdbb. A partition's devpath has the name of its disk as a
// component of its own (/devices/.../block/sdb/sdb1), so "/sdb/" is in none of another disk, and it is known when the partition
// goes, too. udev sorts the matches of a line before its assignments, wherever they stand.
//
// syscontainer-tools takes the disk's name from KERNEL, the container's id and the path from RUN, passes over all fields that do
// not begin with one of these (so the last match is not KERNELS), and writes every line of the file anew, without the last
// match. A line without it is therefore the same rule. [Set] and [Add] put it back for the container that they are called for.
// syscontainer-tools looks for a disk by the name that the record has: the rule of a disk that is named there by a link it does not
// find.
//
// # Containers
//
// A line has the first 8 characters of an id of 64 hexadecimal digits, and any other id as it is. That is how rules are told
// apart here: two ids that are the same in this form are one container. syscontainer-tools cuts every id to 8 characters, also in
// lines that it only copies. What is left then of a longer id that is not of 64 digits could belong to several containers (web-prod
// of web-prod-1 and of web-prod-2), so such a line is left alone. It ends on a line with an id shorter than 8 characters, after it has
// emptied the file. Where it is in use, ids have to be of 64 hexadecimal digits, as those of iSulad are.
package udev
