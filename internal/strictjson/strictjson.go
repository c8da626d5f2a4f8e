// Package strictjson decodes JSON that a second program, written in another language, reads as well. What two readers could
// understand differently is an error: duplicate members, members that differ from a known one only in case, null for a string
// or number, invalid UTF-8 and anything behind the value.
//
// The syntax is jsontext's, the parser of encoding/json/v2. The decoding is done here, in the same pass as the checks, and the
// encoding too: a hook handles a few small documents in its life, and setting up a general coder for their types takes longer
// than all else it does with them.
package strictjson

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// ErrCase is the cause when a member's name is a known one in another case.
var ErrCase = errors.New("member name in the wrong case")

// Unmarshal decodes data, which has to be one JSON object, into the struct that v points to. Its fields have tags as for
// encoding/json/v2 and are strings, integers, booleans, structs, or pointers to, slices of and maps with strings as keys to those.
// Unknown members are left out, or kept in a field of type jsontext.Value with the option embed.
func Unmarshal(data []byte, v any) error {
	dec := jsontext.NewDecoder(bytes.NewBuffer(data)) // reads a Buffer in place
	if kind := dec.PeekKind(); kind != jsontext.KindBeginObject {
		if _, err := dec.ReadToken(); err != nil {
			return err
		}
		return fmt.Errorf("want an object, got %v", kind)
	}
	if err := decode(dec, reflect.ValueOf(v).Elem()); err != nil {
		return err
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the object")
	}
	return nil
}

// decode reads one value into v.
func decode(dec *jsontext.Decoder, v reflect.Value) error {
	if v.Kind() == reflect.Pointer && dec.PeekKind() != jsontext.KindNull {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	switch kind := dec.PeekKind(); {
	case kind == jsontext.KindBeginObject && v.Kind() == reflect.Struct:
		return decodeObject(dec, v)
	case kind == jsontext.KindBeginObject && v.Kind() == reflect.Map:
		return decodeMap(dec, v)
	case kind == jsontext.KindBeginArray && v.Kind() == reflect.Slice:
		return decodeArray(dec, v)
	}
	token, err := dec.ReadToken()
	if err != nil {
		return err
	}
	switch kind := token.Kind(); {
	case kind == jsontext.KindString && v.Kind() == reflect.String:
		v.SetString(token.String())
	case kind == jsontext.KindNumber && v.CanInt():
		n, err := strconv.ParseInt(token.String(), 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%s: %w", dec.StackPointer(), err)
		}
		v.SetInt(n)
	case kind == jsontext.KindNumber && v.CanUint():
		n, err := strconv.ParseUint(token.String(), 10, v.Type().Bits())
		if err != nil {
			return fmt.Errorf("%s: %w", dec.StackPointer(), err)
		}
		v.SetUint(n)
	case (kind == jsontext.KindTrue || kind == jsontext.KindFalse) && v.Kind() == reflect.Bool:
		v.SetBool(kind == jsontext.KindTrue)
	case kind == jsontext.KindNull && (v.Kind() == reflect.Slice || v.Kind() == reflect.Map || v.Kind() == reflect.Struct ||
		v.Kind() == reflect.Pointer):
	default:
		return fmt.Errorf("%s: %v where a %v should be", dec.StackPointer(), kind, v.Kind())
	}
	return nil
}

func decodeArray(dec *jsontext.Decoder, v reflect.Value) error {
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	v.Set(reflect.MakeSlice(v.Type(), 0, 0))
	for {
		switch dec.PeekKind() {
		case jsontext.KindEndArray, jsontext.KindInvalid:
			_, err := dec.ReadToken()
			return err
		default:
			v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
			if err := decode(dec, v.Index(v.Len()-1)); err != nil {
				return err
			}
		}
	}
}

// decodeMap takes members of any name; the parser refuses one that comes twice.
func decodeMap(dec *jsontext.Decoder, v reflect.Value) error {
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	v.Set(reflect.MakeMap(v.Type()))
	for {
		token, err := dec.ReadToken()
		if err != nil || token.Kind() == jsontext.KindEndObject {
			return err
		}
		name := reflect.ValueOf(token.String()).Convert(v.Type().Key())
		value := reflect.New(v.Type().Elem()).Elem()
		if err := decode(dec, value); err != nil {
			return err
		}
		v.SetMapIndex(name, value)
	}
}

func decodeObject(dec *jsontext.Decoder, v reflect.Value) error {
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for {
		token, err := dec.ReadToken()
		if err != nil || token.Kind() == jsontext.KindEndObject {
			return err
		}
		name := token.String()
		field, embed, err := fieldNamed(v, name)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", dec.StackPointer(), err)
		case field.IsValid():
			err = decode(dec, field)
		case embed.IsValid():
			err = keep(dec, embed, name)
		default:
			err = dec.SkipValue()
		}
		if err != nil {
			return err
		}
	}
}

// fieldNamed gives the field of the struct v that the member belongs to, or else the one that keeps unknown members.
func fieldNamed(v reflect.Value, name string) (field, embed reflect.Value, err error) {
	for i := range v.NumField() {
		switch tag := tagOf(v.Type().Field(i)); {
		case tag.skip:
		case tag.inline:
			if field, _, err = fieldNamed(v.Field(i), name); err != nil || field.IsValid() {
				return field, embed, err
			}
		case tag.embed:
			embed = v.Field(i)
		case tag.name == name:
			return v.Field(i), reflect.Value{}, nil
		case strings.EqualFold(tag.name, name):
			return field, embed, fmt.Errorf("%w: %q, want %q", ErrCase, name, tag.name)
		}
	}
	return field, embed, nil
}

// tag is what a struct field says about its member.
type tag struct {
	name      string
	omitEmpty bool
	embed     bool // keeps the members that the struct does not know
	inline    bool // a struct whose members are those of this one
	skip      bool
}

func tagOf(f reflect.StructField) tag {
	name, option, tagged := strings.Cut(f.Tag.Get("json"), ",")
	t := tag{name: name, omitEmpty: option == "omitempty", embed: tagged && option == "embed"}
	t.inline = f.Anonymous && name == ""
	t.skip = name == "-" || name == "" && !t.embed && !t.inline
	return t
}

// keep adds the member to the object of unknown ones.
func keep(dec *jsontext.Decoder, embed reflect.Value, name string) error {
	value, err := dec.ReadValue()
	if err != nil {
		return err
	}
	quoted, err := jsontext.AppendQuote(nil, name)
	if err != nil {
		return err
	}
	object := bytes.TrimSuffix(embed.Bytes(), []byte("}"))
	if len(object) == 0 {
		object = []byte("{")
	} else {
		object = append(object, ',')
	}
	object = append(append(append(object, quoted...), ':'), value...)
	embed.SetBytes(append(object, '}'))
	return nil
}
