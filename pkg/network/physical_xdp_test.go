//go:build linux

package network

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// xdpProgram loads a program that drops every packet.
func xdpProgram(t *testing.T) int {
	t.Helper()
	return loadProgram(t, 6, 1) // XDP_DROP
}

// tcProgram does the same for tcx.
func tcProgram(t *testing.T) int {
	t.Helper()
	return loadProgram(t, 3, 2) // TC_ACT_SHOT
}

func loadProgram(t *testing.T, kind, result uint32) int {
	t.Helper()
	program := []uint64{uint64(result)<<32 | 0xb7, 0x95} // r0 = result; exit
	license := []byte("GPL\x00")
	attr := struct {
		kind, count           uint32
		instructions, licence unsafe.Pointer
		_                     [104]byte
	}{kind: kind, count: uint32(len(program)), instructions: unsafe.Pointer(&program[0]), licence: unsafe.Pointer(&license[0])}
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	runtime.KeepAlive(program)
	runtime.KeepAlive(license)
	require.NoError(t, err)
	return fd
}

func attachXDP(t *testing.T, p place, index, program int) {
	t.Helper()
	request, _ := p.setLink(index)
	xdp := nl.NewRtAttr(unix.IFLA_XDP|unix.NLA_F_NESTED, nil)
	xdp.AddRtAttr(unix.IFLA_XDP_FD, nl.Uint32Attr(uint32(program)))
	xdp.AddRtAttr(unix.IFLA_XDP_FLAGS, nl.Uint32Attr(unix.XDP_FLAGS_SKB_MODE))
	request.AddData(xdp)
	_, err := request.Execute(unix.NETLINK_ROUTE, 0)
	require.NoError(t, err)
}

// linkXDP attaches a program by a link of bpf(2), which holds as long as the handle.
func linkXDP(t *testing.T, ns *os.File, index, program int) (link int) {
	t.Helper()
	const attachXDP = 37 // BPF_XDP
	return attachBPF(t, ns, unix.BPF_LINK_CREATE, program, index, attachXDP, unix.XDP_FLAGS_SKB_MODE)
}

// attachBPF has a command with these numbers done in the network namespace.
func attachBPF(t *testing.T, ns *os.File, command int, numbers ...int) (result int) {
	t.Helper()
	var attr [4]uint32
	for i, number := range numbers {
		attr[i] = uint32(number)
	}
	require.NoError(t, inNamespace(ns, func() (err error) {
		result, err = bpf(command, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
		return err
	}))
	return result
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
				link := linkXDP(t, n.ns, attachments[0].Index, program)
				defer unix.Close(link)
				index := attachments[0].Index // which the other one has in its own namespace
				insideLines(t, bystander, fmt.Sprintf("ip link add other index %d type veth peer name end", index))
				bystanders := linkXDP(t, bystander.ns, index, program)
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

// On the host an index does not tell whose link it is.
func TestPhysicalXDPOfOther(t *testing.T) {
	newPhysical(t, "veth")
	n, bystander := newNetwork(t, "c1"), newNetwork(t, "c2")
	before := facts(t, n.host, "p0")
	attachments := attached(t, n)
	require.NoError(t, n.Detach(t.Context(), attachments))
	hostLines(t, "ip link set p0 down")
	index := attachments[0].Original.Index
	insideLines(t, bystander, fmt.Sprintf("ip link add other index %d type veth peer name end", index))
	program := xdpProgram(t)
	defer unix.Close(program)
	link, other := linkXDP(t, n.hostNS, index, program), linkXDP(t, bystander.ns, index, program)
	defer unix.Close(other)
	err := n.Detach(t.Context(), attachments)
	require.ErrorIs(t, err, ErrUnsettled)
	require.ErrorContains(t, err, "remove xdp program, which is still there and has to be detached")
	require.Contains(t, inside(t, bystander, "/sbin/ip", "link", "show", "dev", "other"), "xdpgeneric")
	unix.Close(link)
	hostLines(t, "ip link set p0 down")
	require.NoError(t, n.Detach(t.Context(), attachments))
	requireHome(t, n, before)
}

// A program of tcx does not come home either, in neither direction.
func TestPhysicalTCX(t *testing.T) {
	newPhysical(t, "veth")
	n := newNetwork(t, "c1")
	before := facts(t, n.host, "p0")
	attachments := attached(t, n)
	index := attachments[0].Index
	program, linked := tcProgram(t), tcProgram(t)
	for _, direction := range tcxDirections {
		attachBPF(t, n.ns, unix.BPF_PROG_ATTACH, index, program, int(direction))
		link := attachBPF(t, n.ns, unix.BPF_LINK_CREATE, linked, index, int(direction))
		defer unix.Close(link)
	}
	unix.Close(linked)
	there, err := tcxPrograms(n.ns, index)
	require.NoError(t, err)
	require.Len(t, there, 4)
	require.NoError(t, n.Detach(t.Context(), attachments))
	requireHome(t, n, before)
	link, err := linkNamed(n.host, "p0")
	require.NoError(t, err)
	there, err = tcxPrograms(n.hostNS, link.Attrs().Index)
	require.NoError(t, err)
	require.Empty(t, there)
	attachBPF(t, n.hostNS, unix.BPF_PROG_ATTACH, link.Attrs().Index, program, int(tcxDirections[0]))
	unix.Close(program)
	_, err = n.Plan(t.Context(), []Interface{physical})
	require.ErrorContains(t, err, "p0 has a tcx program of the host")
}
