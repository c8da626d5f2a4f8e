package strictjson

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

type outer struct {
	Name  string   `json:"name"`
	Inner []inner  `json:"inner"`
	Ptr   *inner   `json:"ptr"`
	Map   anything `json:"map"`
}

type anything map[string]string

type inner struct {
	Major int `json:"Major"`
}

func TestUnmarshal(t *testing.T) {
	t.Parallel()
	var v outer
	require.NoError(t, Unmarshal([]byte(` {"name":"a","inner":[{"Major":8,"new":{"Name":1}}],"map":{"Name":"x"},"ptr":{"Major":1}} `), &v))
	require.Equal(t, outer{Name: "a", Inner: []inner{{Major: 8}}, Map: anything{"Name": "x"}, Ptr: &inner{Major: 1}}, v)
}

func TestUnmarshalRefuses(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]string{
		"empty":               "",
		"only null":           "null",
		"array":               "[]",
		"string":              `""`,
		"torn":                "{",
		"byte order mark":     "\ufeff{}",
		"trailing":            "{}x",
		"two objects":         "{}{}",
		"duplicate":           `{"name":"a","name":"b"}`,
		"duplicate unknown":   `{"x":1,"x":2}`,
		"case":                `{"NAME":"a"}`,
		"case beside":         `{"name":"a","Name":"b"}`,
		"case in an array":    `{"inner":[{"major":1}]}`,
		"case behind pointer": `{"ptr":{"MAJOR":1}}`,
		"no value":            `{"name":}`,
		"wrong type":          `{"name":5}`,
		"null":                `{"name":null}`,
		"null inside":         `{"inner":[{"Major":null}]}`,
		"object for array":    `{"inner":{}}`,
		"invalid UTF-8":       "{\"name\":\"\xff\"}",
		"deep":                strings.Repeat(`{"x":`, 20000) + "1" + strings.Repeat("}", 20000),
		"deep array":          `{"inner":` + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + "}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var v outer
			require.Error(t, Unmarshal([]byte(data), &v))
		})
	}
}
