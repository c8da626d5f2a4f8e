// Package job is what the machine and its guest have to agree about.
package job

// The initial file system holds the job, and in ModuleDir the modules to load first. Verdict begins the last line of the
// guest's output, the exit status follows.
const (
	File      = "/job.json"
	ModuleDir = "/modules"
	Verdict   = "exit status of the guest: "
)

// Job is the program that the guest runs, and the directory of its kernel's modules; all paths are those of the machine.
type Job struct {
	Args    []string
	Env     []string
	Dir     string
	Modules string
}
