//go:build linux

package network

import (
	"runtime"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"isula.org/syscontainer-hooks/internal/thread"
)

// xdpProgram loads a program that drops every packet.
func xdpProgram(t *testing.T) int {
	t.Helper()
	program := []uint64{0x00000001_000000b7, 0x95} // r0 = XDP_DROP; exit
	license := []byte("GPL\x00")
	attr := struct {
		kind, count           uint32
		instructions, licence unsafe.Pointer
		_                     [104]byte
	}{kind: 6, count: uint32(len(program)), instructions: unsafe.Pointer(&program[0]), licence: unsafe.Pointer(&license[0])}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(program)
	runtime.KeepAlive(license)
	require.NoError(t, err)
	return fd
}

func attachXDP(t *testing.T, p place, index, program int) {
	t.Helper()
	request := p.request(unix.RTM_SETLINK)
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index = int32(index)
	request.AddData(info)
	xdp := nl.NewRtAttr(unix.IFLA_XDP|unix.NLA_F_NESTED, nil)
	xdp.AddRtAttr(unix.IFLA_XDP_FD, nl.Uint32Attr(uint32(program)))
	xdp.AddRtAttr(unix.IFLA_XDP_FLAGS, nl.Uint32Attr(unix.XDP_FLAGS_SKB_MODE))
	request.AddData(xdp)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	require.NoError(t, err)
}

// linkXDP attaches a program by a link of bpf(2), which holds as long as the handle.
func linkXDP(t *testing.T, n *Network, index, program int) (link int) {
	t.Helper()
	const attachXDP = 37 // BPF_XDP
	require.NoError(t, thread.Own(func() (err error) {
		if err := unix.Setns(int(n.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		attr := [4]uint32{uint32(program), uint32(index), attachXDP, unix.XDP_FLAGS_SKB_MODE}
		link, err = bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		return err
	}))
	return link
}

// A program that sees each packet first does not come home with the interface, however it is attached.
func TestPhysicalXDP(t *testing.T) {
	for _, linked := range []bool{false, true} {
		t.Run(map[bool]string{false: "netlink", true: "bpf link"}[linked], func(t *testing.T) {
			newPhysical(t, "veth")
			n, bystander := newNetwork(t, "c1"), newNetwork(t, "c2")
			before := facts(t, n.host, "p0")
			attachments := attached(t, n)
			program := xdpProgram(t)
			defer unix.Close(program)
			if linked {
				link := linkXDP(t, n, attachments[0].Index, program)
				defer unix.Close(link)
				insideLines(t, bystander, "ip link add other type veth peer name end")
				other, err := linkNamed(bystander.inside, "other")
				require.NoError(t, err)
				require.NotEqual(t, attachments[0].Index, other.Attrs().Index)
				bystanders := linkXDP(t, bystander, other.Attrs().Index, program)
				defer unix.Close(bystanders)
			} else {
				attachXDP(t, n.insidePlace(), attachments[0].Index, program)
			}
			require.Contains(t, inside(t, n, "/sbin/ip", "link", "show", "dev", "c0"), "xdpgeneric")
			require.NoError(t, n.Detach(t.Context(), attachments))
			requireHome(t, n, before)
			require.NotContains(t, host(t, "/sbin/ip", "link", "show", "dev", "p0"), "xdp")
			if linked {
				require.Contains(t, inside(t, bystander, "/sbin/ip", "link", "show", "dev", "other"), "xdpgeneric")
			}
			link, err := linkNamed(n.host, "p0")
			require.NoError(t, err)
			attachXDP(t, n.hostPlace(), link.Attrs().Index, program)
			_, err = n.Plan(t.Context(), []Interface{physical})
			require.ErrorContains(t, err, "p0 has an XDP program of the host")
		})
	}
}
