//go:build linux

package testutil

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStartOVS(t *testing.T) {
	RequireRoot(t)
	for range 2 {
		t.Run("", func(t *testing.T) {
			StartOVS(t)
			AddOVSBridge(t, "ovsbr0")
			require.Equal(t, "ovsbr0", strings.TrimSpace(OVS(t, "list-br")))
			_, err := os.Lstat("/sys/class/net/ovsbr0")
			require.NoError(t, err)
		})
		for _, left := range []string{"/sys/class/net/ovsbr0", ovsDir} {
			_, err := os.Lstat(left)
			require.ErrorIs(t, err, os.ErrNotExist)
		}
	}
}
