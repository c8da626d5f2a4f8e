//go:build linux

package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// killedEnv has what a process of this program does instead of the tests; it is killed at one of its system calls.
const killedEnv = "SYSCONTAINER_HOOKS_TEST_KILLED"

type killedJob struct {
	Detach      bool
	Attachments []Attachment
}

// runToBeKilled works in the container's network namespace that is handle 3.
func runToBeKilled(text string) int {
	var job killedJob
	err := json.Unmarshal([]byte(text), &job)
	if err == nil {
		var n *Network
		if n, err = Open("c1", os.NewFile(3, "ns")); err == nil {
			if job.Detach {
				err = n.Detach(context.Background(), job.Attachments)
			} else {
				err = n.Attach(context.Background(), job.Attachments)
			}
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Netlink messages and system calls that change something.
var (
	changingMessages = []uint16{
		unix.RTM_NEWLINK, unix.RTM_SETLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_NEWLINKPROP, unix.RTM_DELLINKPROP,
	}
	changingCalls = []uint64{unix.SYS_UNSHARE, unix.SYS_MOVE_MOUNT, unix.SYS_UMOUNT2, unix.SYS_UNLINKAT, unix.SYS_MKDIRAT}
)

// syscallInfo is struct ptrace_syscall_info of ptrace(2) for the entry to a system call.
type syscallInfo struct {
	op      uint8
	_       [23]byte
	number  uint64
	args    [6]uint64
	padding [8]byte
}

// changes tells whether the thread is about to make one of those calls.
func changes(t *testing.T, tid int) bool {
	t.Helper()
	var info syscallInfo
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid),
		unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	require.Zero(t, errno)
	switch {
	case info.op != unix.PTRACE_SYSCALL_INFO_ENTRY:
		return false
	case info.number == unix.SYS_SENDTO:
		header := make([]byte, 8)
		_, err := unix.PtracePeekData(tid, uintptr(info.args[1]), header)
		require.NoError(t, err)
		return slices.Contains(changingMessages, uint16(header[4])|uint16(header[5])<<8)
	default:
		return slices.Contains(changingCalls, info.number)
	}
}

// kill runs the job until it is about to change something for the time at, and kills it there. It tells whether the job came to
// its end before.
func kill(t *testing.T, n *Network, job killedJob, at int) bool {
	t.Helper()
	text, err := json.Marshal(job)
	require.NoError(t, err)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), killedEnv+"="+string(text), "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{n.ns}
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Pdeathsig: unix.SIGKILL}
	require.NoError(t, cmd.Start())
	defer func() { _ = cmd.Process.Release() }()
	pid, count := cmd.Process.Pid, 0
	const sysgood = 0x80
	for started := false; ; {
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		require.NoError(t, err)
		switch {
		case tid == pid && (status.Exited() || status.Signaled()):
			if status.Exited() {
				require.Zero(t, status.ExitStatus())
			}
			return status.Exited()
		case !status.Stopped():
			continue
		case !started:
			started = true
			options := unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
			require.NoError(t, unix.PtraceSetOptions(tid, options))
		}
		signal := 0
		switch stop := status.StopSignal(); stop {
		case unix.SIGTRAP | sysgood:
			if changes(t, tid) {
				if count++; count == at {
					require.NoError(t, unix.Kill(pid, unix.SIGKILL))
					continue
				}
			}
		case unix.SIGTRAP, unix.SIGSTOP: // a new thread
		default:
			signal = int(stop)
		}
		if err := unix.PtraceSyscall(tid, signal); err != nil {
			require.ErrorIs(t, err, unix.ESRCH) // its process ends
		}
	}
}

// A process that is killed before any of the changes that it makes: the interface comes home in the next one.
func TestPhysicalKilled(t *testing.T) {
	for kind := range standIns {
		if testing.Short() && kind != "ifb" {
			continue
		}
		for _, job := range []string{"attach", "detach"} {
			t.Run(kind+"/"+job, func(t *testing.T) {
				newPhysical(t, kind)
				n := newNetwork(t, "c1")
				before := facts(t, n.host, "p0")
				at := 1
				for ended := false; !ended; at++ {
					attachments := planned(t, n)
					if job == "detach" {
						require.NoError(t, n.Attach(t.Context(), attachments))
						insideLines(t, n, "ip link set c0 name p0 alias x",
							"ip link property add dev p0 altname br0", "ip link set p0 mtu 900 promisc on")
					}
					ended = kill(t, n, killedJob{Detach: job == "detach", Attachments: attachments}, at)
					again, err := Open("c1", n.ns)
					require.NoError(t, err)
					require.NoError(t, again.Detach(t.Context(), attachments), "killed before change %d", at)
					again.Close()
					require.Equal(t, before, facts(t, n.host, "p0"), "killed before change %d", at)
					requireHome(t, n, before)
					require.Len(t, links(t, n.inside), 1)
				}
				require.Greater(t, at, 12)
			})
		}
	}
}
