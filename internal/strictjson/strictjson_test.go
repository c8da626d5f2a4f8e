package strictjson

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/stretchr/testify/require"
)

type outer struct {
	Name  string  `json:"name"`
	Inner []inner `json:"inner"`
	One   inner   `json:"one"`
	Size  uint32  `json:"size"`
}

type mapped struct {
	Text map[string]string `json:"text"`
	Size map[string]int8   `json:"size"`
}

type inner struct {
	Major   int64          `json:"Major"`
	Unknown jsontext.Value `json:",embed"`
}

func TestUnmarshal(t *testing.T) {
	t.Parallel()
	var v outer
	const data = ` {"name":"ä\n","inner":[{"Major":8,"new":{"Name":1},"x\"y": [ 1 ]},{}],"one":{"Major":-1},"map":{"Name":"x"},"size":7} `
	require.NoError(t, Unmarshal([]byte(data), &v))
	unknown := jsontext.Value(`{"new":{"Name":1},"x\"y":[ 1 ]}`)
	require.Equal(t, outer{Name: "ä\n", Inner: []inner{{Major: 8, Unknown: unknown}, {}}, One: inner{Major: -1}, Size: 7}, v)
	require.NoError(t, Unmarshal([]byte(`{"inner":null,"one":null}`), &v))
}

// Names are those of a map, and its alone: also ones that are equal but for their case.
func TestUnmarshalMap(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]mapped{
		`{}`:            {},
		`{"text":null}`: {},
		`{"text":{}}`:   {Text: map[string]string{}},
		`{"text":{"a":"1","A":"2","":"ä\t","text":""},"size":{"x":-3}}`: {
			Text: map[string]string{"a": "1", "A": "2", "": "ä\t", "text": ""}, Size: map[string]int8{"x": -3},
		},
	} {
		var got mapped
		require.NoError(t, Unmarshal([]byte(data), &got), data)
		require.Equal(t, want, got, data)
	}
	for _, data := range []string{
		`{"text":[]}`, `{"text":"a"}`, `{"text":{"a":1}}`, `{"text":{"a":null}}`, `{"text":{"a":"1","a":"1"}}`, `{"text":{"a":{}}}`,
		`{"size":{"a":128}}`, `{"Text":{}}`, `{"text":{"a":"1"`, `{"text":{"a\ud800":"1"}}`,
	} {
		var got mapped
		require.Error(t, Unmarshal([]byte(data), &got), data)
	}
}

type whole struct {
	base
	Ptr    *inner   `json:"ptr,omitempty"`
	List   []string `json:"list,omitempty"`
	Done   bool     `json:"done,omitempty"`
	hidden int
}

type base struct {
	Path string `json:"path"`
}

func TestMarshal(t *testing.T) {
	t.Parallel()
	for want, v := range map[string]whole{
		`{"path":"a\"b"}`: {base: base{Path: `a"b`}, hidden: 1, List: []string{}},
		`{"path":"","ptr":{"Major":-3,"x":[1,2]},"list":["","ü"],"done":true}`: {
			Ptr: &inner{Major: -3, Unknown: jsontext.Value(`{"x": [1, 2]}`)}, List: []string{"", "ü"}, Done: true,
		},
	} {
		got, err := Marshal(v)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
		var back whole
		require.NoError(t, Unmarshal(got, &back))
		again, err := Marshal(back)
		require.NoError(t, err)
		require.Equal(t, want, string(again))
	}
	_, err := Marshal(inner{Unknown: jsontext.Value(`[1]`)})
	require.Error(t, err)
	_, err = Marshal(struct {
		C chan int `json:"c"`
	}{})
	require.Error(t, err)
}

func TestUnmarshalRefuses(t *testing.T) {
	t.Parallel()
	for name, data := range map[string]string{
		"empty":             "",
		"only null":         "null",
		"array":             "[]",
		"string":            `""`,
		"torn":              "{",
		"byte order mark":   "\ufeff{}",
		"trailing":          "{}x",
		"two objects":       "{}{}",
		"duplicate":         `{"name":"a","name":"b"}`,
		"duplicate unknown": `{"x":1,"x":2}`,
		"case":              `{"NAME":"a"}`,
		"case beside":       `{"name":"a","Name":"b"}`,
		"case in an array":  `{"inner":[{"major":1}]}`,
		"case in an object": `{"one":{"MAJOR":1}}`,
		"fraction":          `{"size":1.5}`,
		"exponent":          `{"size":1e2}`,
		"negative":          `{"size":-1}`,
		"too large":         `{"size":4294967296}`,
		"no value":          `{"name":}`,
		"wrong type":        `{"name":5}`,
		"null":              `{"name":null}`,
		"null inside":       `{"inner":[{"Major":null}]}`,
		"object for array":  `{"inner":{}}`,
		"invalid UTF-8":     "{\"name\":\"\xff\"}",
		"deep":              strings.Repeat(`{"x":`, 20000) + "1" + strings.Repeat("}", 20000),
		"deep array":        `{"inner":` + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + "}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var v outer
			require.Error(t, Unmarshal([]byte(data), &v))
		})
	}
}

// What is taken is what encoding/json/v2 reads in it.
func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte(`{"name":"a","inner":[{"Major":8,"new":{"Name":1}}],"one":{"Major":1},"size":7,"x":null}`))
	f.Add([]byte(`{"inner":null,"one":{"a":1,"b":"\u00e4"}}`))
	f.Add([]byte(`{"text":{"a":"1","A":"\u00e4"},"size":{"b":-1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var maps, wantMaps mapped
		if Unmarshal(data, &maps) == nil {
			require.NoError(t, json.Unmarshal(data, &wantMaps), "%s", data)
			require.Equal(t, wantMaps, maps, "%s", data)
		}
		var got, want outer
		if Unmarshal(data, &got) != nil {
			return
		}
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		require.Equal(t, fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", got))

		encoded, err := Marshal(got)
		require.NoError(t, err)
		var again outer
		if err := json.Unmarshal(encoded, &again); err != nil {
			t.Fatalf("%s: %v", encoded, err)
		}
		twice, err := Marshal(again)
		require.NoError(t, err)
		require.Equal(t, string(encoded), string(twice))
	})
}
