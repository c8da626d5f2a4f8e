// Package store reads and writes a container's record: device_hook.json, which lists what was added to the container while it
// ran. syscontainer-tools writes the same file, so every change happens under one lock, replaces the file as a whole, and
// keeps members that this version does not know.
package store
