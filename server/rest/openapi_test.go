package rest_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
)

// schema is as much of JSON Schema as openapi.json uses.
type schema struct {
	Ref        string `json:"$ref"`
	Type       any
	Enum       []any
	Items      *schema
	Required   []string
	Properties map[string]*schema
	AllOf      []*schema
	OneOf      []*schema
}

type description struct {
	Paths      map[string]map[string]operation
	Components struct{ Schemas map[string]*schema }
}

type operation struct {
	Parameters []struct{ Name, In string }
	Responses  map[string]struct {
		Content map[string]struct{ Schema *schema }
	}
}

func readDescription(t testing.TB) *description {
	t.Helper()
	b, err := os.ReadFile("openapi.json")
	check(t, err)
	var d description
	check(t, json.Unmarshal(b, &d))
	return &d
}

// operation finds a GET by the path of a request.
func (d *description) operation(path string) (operation, bool) {
	path, _, _ = strings.Cut(path, "?")
	asked := strings.Split(path, "/")
	for pattern, methods := range d.Paths {
		parts := strings.Split(pattern, "/")
		if slices.EqualFunc(parts, asked, func(p, a string) bool { return p == a || strings.HasPrefix(p, "{") }) {
			op, ok := methods["get"]
			return op, ok
		}
	}
	return operation{}, false
}

// flat is a schema with its references and parts put together.
func (d *description) flat(s *schema) *schema {
	if s.Ref != "" {
		return d.flat(d.Components.Schemas[strings.TrimPrefix(s.Ref, "#/components/schemas/")])
	}
	if s.AllOf == nil {
		return s
	}
	all := &schema{Type: "object", Properties: map[string]*schema{}}
	for _, part := range s.AllOf {
		part = d.flat(part)
		all.Required = append(all.Required, part.Required...)
		maps.Copy(all.Properties, part.Properties)
	}
	return all
}

// wrong says where a value is not what the schema describes; "" when it is. A property that is not described is wrong, too.
func (d *description) wrong(s *schema, v any, at string) string {
	s = d.flat(s)
	for _, one := range s.OneOf {
		if d.wrong(one, v, at) == "" {
			return ""
		}
	}
	kind := fmt.Sprintf("%T", v)
	switch x := v.(type) {
	case nil:
		kind = "null"
	case string:
		kind = "string"
	case bool:
		kind = "boolean"
	case float64:
		if kind = "number"; x == math.Trunc(x) {
			kind = "integer"
		}
	case []any:
		kind = "array"
		for i, item := range x {
			if s.Items == nil {
				return at + ": items are not described"
			}
			if w := d.wrong(s.Items, item, fmt.Sprintf("%s[%d]", at, i)); w != "" {
				return w
			}
		}
	case map[string]any:
		kind = "object"
		for _, name := range s.Required {
			if _, ok := x[name]; !ok {
				return at + "." + name + ": is missing"
			}
		}
		for name, value := range x {
			if s.Properties[name] == nil {
				return at + "." + name + ": is not described"
			}
			if w := d.wrong(s.Properties[name], value, at+"."+name); w != "" {
				return w
			}
		}
	}
	if s.Type == "number" && kind == "integer" {
		kind = "number"
	}
	if s.Type != kind || s.Enum != nil && !slices.Contains(s.Enum, v) {
		return fmt.Sprintf("%s: %s where %v is described", at, kind, s.Type)
	}
	return ""
}

// described demands that an answer is as openapi.json says.
func (d *deployment) described(a answer) {
	d.t.Helper()
	doc := readDescription(d.t)
	op, ok := doc.operation(a.Request.URL.Path)
	if !ok {
		d.t.Errorf("%s is not described", a.Request.URL.Path)
		return
	}
	status, media := "200", "application/json"
	if a.StatusCode != 200 {
		status, media = "default", "application/problem+json"
	}
	content := op.Responses[status].Content[media]
	var v any
	check(d.t, json.Unmarshal(a.body, &v))
	if content.Schema == nil {
		d.t.Errorf("%s: %s is not described", a.Request.URL.Path, status)
	} else if w := doc.wrong(content.Schema, v, "$"); w != "" {
		d.t.Errorf("%s: %s in %.400s", a.Request.URL.Path, w, a.body)
	}
	for name := range a.Request.URL.Query() {
		if !slices.ContainsFunc(op.Parameters, func(p struct{ Name, In string }) bool { return p.Name == name && p.In == "query" }) && a.StatusCode == 200 {
			d.t.Errorf("%s takes %s, which is not described", a.Request.URL.Path, name)
		}
	}
}

// TestDescriptionIsHeldAgainstAnswers shows that the check fails when it should.
func TestDescriptionIsHeldAgainstAnswers(t *testing.T) {
	doc := readDescription(t)
	s := &schema{Ref: "#/components/schemas/Problem"}
	good := func() map[string]any {
		return map[string]any{"type": "about:blank", "title": "Bad Request", "status": 400.0, "detail": "", "request_id": "r"}
	}
	if w := doc.wrong(s, good(), "$"); w != "" {
		t.Error(w)
	}
	for name, change := range map[string]func(map[string]any){
		"more": func(m map[string]any) { m["more"] = 1.0 }, "less": func(m map[string]any) { delete(m, "detail") },
		"type": func(m map[string]any) { m["status"] = "400" }, "fraction": func(m map[string]any) { m["status"] = 400.5 }, "null": func(m map[string]any) { m["title"] = nil },
		"item": func(m map[string]any) { m["allowed"] = []any{1.0} },
	} {
		m := good()
		if change(m); doc.wrong(s, m, "$") == "" {
			t.Errorf("%s goes unnoticed", name)
		}
	}
}
