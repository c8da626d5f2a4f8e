package strictjson

import (
	"bytes"
	"fmt"
	"reflect"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

// Marshal encodes what Unmarshal decodes, but for maps: a struct, its members in the order of its fields, on one line. A field with
// the option omitempty is left out when it has its zero value or no elements.
func Marshal(v any) ([]byte, error) { return encode(nil, reflect.ValueOf(v)) }

func encode(b []byte, v reflect.Value) ([]byte, error) {
	switch {
	case v.Kind() == reflect.Pointer && v.IsNil():
		return append(b, "null"...), nil
	case v.Kind() == reflect.Pointer:
		return encode(b, v.Elem())
	case v.Kind() == reflect.Struct:
		b, err := encodeFields(append(b, '{'), v)
		return append(b, '}'), err
	case v.Kind() == reflect.Slice:
		b = append(b, '[')
		for i := range v.Len() {
			if i > 0 {
				b = append(b, ',')
			}
			var err error
			if b, err = encode(b, v.Index(i)); err != nil {
				return nil, err
			}
		}
		return append(b, ']'), nil
	case v.Kind() == reflect.String:
		return jsontext.AppendQuote(b, v.String())
	case v.Kind() == reflect.Bool:
		return strconv.AppendBool(b, v.Bool()), nil
	case v.CanInt():
		return strconv.AppendInt(b, v.Int(), 10), nil
	case v.CanUint():
		return strconv.AppendUint(b, v.Uint(), 10), nil
	default:
		return nil, fmt.Errorf("cannot encode a %v", v.Type())
	}
}

// encodeFields appends the members of the struct v to an object that has been begun.
func encodeFields(b []byte, v reflect.Value) ([]byte, error) {
	for i := range v.NumField() {
		field, tag := v.Field(i), tagOf(v.Type().Field(i))
		if tag.skip || tag.omitEmpty && isEmpty(field) {
			continue
		}
		var err error
		switch {
		case tag.inline:
			b, err = encodeFields(b, field)
		case tag.embed:
			b, err = appendMembers(b, field.Bytes())
		default:
			b, err = jsontext.AppendQuote(comma(b), tag.name)
			if err == nil {
				b, err = encode(append(b, ':'), field)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return b, nil
}

// appendMembers appends the members of an object that was kept.
func appendMembers(b, object []byte) ([]byte, error) {
	if len(object) == 0 {
		return b, nil
	}
	value := jsontext.Value(bytes.Clone(object))
	if err := value.Compact(); err != nil {
		return nil, err
	}
	if len(value) < 2 || value[0] != '{' {
		return nil, fmt.Errorf("kept members are no object: %.40s", value)
	}
	if members := value[1 : len(value)-1]; len(members) > 0 {
		b = append(comma(b), members...)
	}
	return b, nil
}

// comma appends one unless the object has just begun.
func comma(b []byte) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	return b
}

func isEmpty(v reflect.Value) bool { return v.IsZero() || v.Kind() == reflect.Slice && v.Len() == 0 }
