// Package strictjson decodes JSON that a second program, written in another language, reads as well. What two readers could
// understand differently is an error: duplicate members, members that differ from a known one only in case, null for a string
// or number, invalid UTF-8 and anything behind the value. It is encoding/json/v2 plus two checks.
package strictjson

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// ErrCase is the cause when a member's name is a known one in another case.
var ErrCase = errors.New("member name in the wrong case")

// Unmarshal decodes data, which has to be one JSON object, into the struct that v points to.
func Unmarshal(data []byte, v any) error {
	dec := jsontext.NewDecoder(bytes.NewReader(data))
	if kind := dec.PeekKind(); kind != jsontext.KindBeginObject {
		if _, err := dec.ReadToken(); err != nil {
			return err
		}
		return fmt.Errorf("want an object, got %v", kind)
	}
	if err := checkNames(dec, reflect.TypeOf(v).Elem()); err != nil {
		return err
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the object")
	}
	return json.Unmarshal(data, v)
}

// checkNames reads one value that is to be decoded into a t.
func checkNames(dec *jsontext.Decoder, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch kind := dec.PeekKind(); {
	case kind == jsontext.KindNull && t.Kind() != reflect.Slice && t.Kind() != reflect.Struct && t.Kind() != reflect.Map:
		return fmt.Errorf("%s: null where a value should be", dec.StackPointer())
	case kind == jsontext.KindBeginObject && t.Kind() == reflect.Struct:
		return checkObject(dec, t)
	case kind == jsontext.KindBeginArray && t.Kind() == reflect.Slice:
		if _, err := dec.ReadToken(); err != nil {
			return err
		}
		for {
			switch dec.PeekKind() {
			case jsontext.KindEndArray, jsontext.KindInvalid:
				_, err := dec.ReadToken()
				return err
			default:
				if err := checkNames(dec, t.Elem()); err != nil {
					return err
				}
			}
		}
	default:
		return dec.SkipValue()
	}
}

func checkObject(dec *jsontext.Decoder, t reflect.Type) error {
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for {
		token, err := dec.ReadToken()
		if err != nil || token.Kind() == jsontext.KindEndObject {
			return err
		}
		name := token.String()
		field, err := fieldNamed(t, name)
		if err != nil {
			return fmt.Errorf("%s: %w", dec.StackPointer(), err)
		}
		if field == nil {
			err = dec.SkipValue()
		} else {
			err = checkNames(dec, field)
		}
		if err != nil {
			return err
		}
	}
}

// fieldNamed gives the type of the field that the member belongs to, nil for a member that t does not know.
func fieldNamed(t reflect.Type, name string) (reflect.Type, error) {
	for field := range t.Fields() {
		known, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if known == "" || known == "-" {
			continue
		}
		if known == name {
			return field.Type, nil
		}
		if strings.EqualFold(known, name) {
			return nil, fmt.Errorf("%w: %q, want %q", ErrCase, name, known)
		}
	}
	return nil, nil
}
