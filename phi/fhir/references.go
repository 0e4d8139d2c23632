package fhir

import (
	"bytes"
	"html"
	"strings"
)

// Reference is a reference found in a resource.
type Reference struct {
	Expression string // where, e.g. "Observation.subject"
	Value      string // the literal, unescaped
}

// Patients returns the ids of the patients in whose compartment the resource is, the primary (subject, patient,
// beneficiary, … in the compartment definition's order) first, without duplicates. A Patient is in its own. Only relative
// literal references (Patient/id) and their versioned forms count.
//
// A Patient that links to another Patient is in that one's compartment too, as
// http://hl7.org/fhir/R4/compartmentdefinition-patient.html says.
func (r *Resource) Patients() []string {
	var ids []string
	seen := map[string]bool{} // a Group may have very many
	if r.Type == "Patient" && r.ID != "" {
		ids, seen[r.ID] = append(ids, r.ID), true
	}
	for _, p := range definitions().compartment[r.Type] {
		r.follow(p, func(n int32, _ *place) bool {
			kind, id := splitReference(r.childString(n, "reference"))
			if kind == "Patient" && !seen[id] {
				ids, seen[id] = append(ids, id), true
			}
			return false
		})
	}
	return ids
}

// splitReference splits a relative literal reference, Type/id or Type/id/_history/version; "" for anything else.
func splitReference(literal string) (kind, id string) {
	kind, id, _ = strings.Cut(literal, "/")
	id, version, versioned := strings.Cut(id, "/_history/")
	if !Known(kind) || !ValidID(id) || versioned && !ValidID(version) {
		return "", ""
	}
	return kind, id
}

// References returns all literal references (Reference.reference, and urn: values of type uri/canonical/oid where FHIR's
// transaction rules replace them), in order. References in contained resources and in a Bundle's entries are among them,
// as are references to contained resources ("#id"). A urn: value counts when it is urn:uuid: or urn:oid: and does not
// name a code system or an identifier system.
func (r *Resource) References() []Reference {
	if len(r.nodes) == 0 {
		return nil
	}
	var found []Reference
	paths := r.paths()
	r.literals(func(n int32, value string) {
		found = append(found, Reference{strings.TrimSuffix(paths.of(n), ".reference"), value})
	}, nil)
	return found
}

// Rewrite returns a copy in which literal references are replaced where with returns ok; all other text stays as it is.
// with is asked for what References lists, in order, and for each href and src of a narrative that is a urn:uuid: or
// urn:oid: (http://hl7.org/fhir/R4/http.html#trules). What it returns is not checked.
func (r *Resource) Rewrite(with func(reference string) (string, bool)) *Resource {
	var edits []edit
	r.literals(func(n int32, value string) {
		if to, ok := with(value); ok {
			edits = append(edits, edit{r.nodes[n].start, r.nodes[n].end, appendQuoted(nil, to)})
		}
	}, func(start, end int32) {
		if to, ok := with(string(r.text[start:end])); ok {
			quoted := appendQuoted(nil, html.EscapeString(to))
			edits = append(edits, edit{start, end, quoted[1 : len(quoted)-1]})
		}
	})
	return r.edited(edits)
}

// edit replaces a part of the text.
type edit struct {
	start, end int32
	with       []byte
}

// edited applies edits in ascending order.
func (r *Resource) edited(edits []edit) *Resource {
	if len(edits) == 0 {
		same := *r
		return &same
	}
	text := make([]byte, 0, len(r.text)+len(edits)*16)
	at := int32(0)
	for _, e := range edits {
		text = append(append(text, r.text[at:e.start]...), e.with...)
		at = e.end
	}
	return reparse(append(text, r.text[at:]...))
}

// literals visits the references with their values and, where linked is given, the urns in narratives.
func (r *Resource) literals(visit func(n int32, value string), linked func(start, end int32)) {
	r.typed(func(n int32, owner, t *typ) {
		if r.nodes[n].kind != '"' {
			return
		}
		switch t.name {
		case "string":
			if owner.name == "Reference" && string(r.name(n)) == "reference" {
				visit(n, r.str(n))
			}
		case "uri", "url", "canonical", "oid", "uuid":
			if string(r.name(n)) == "system" || !bytes.HasPrefix(r.raw(n)[1:], []byte("urn:")) {
				return
			}
			if value := r.str(n); isURN(value) {
				visit(n, value)
			}
		case "xhtml":
			if linked != nil && bytes.Contains(r.raw(n), []byte("urn:")) {
				r.links(n, linked)
			}
		}
	})
}

func isURN(s string) bool {
	return strings.HasPrefix(s, "urn:uuid:") || strings.HasPrefix(s, "urn:oid:")
}

// links visits the urns that are the whole value of an href or src attribute in the escaped text of a div.
func (r *Resource) links(n int32, visit func(start, end int32)) {
	start, end := r.nodes[n].start, r.nodes[n].end
	for _, attribute := range attributes(r.text[start:end]) {
		from, to := start+attribute[0], start+attribute[1]
		if isURN(string(r.text[from:to])) {
			visit(from, to)
		}
	}
}

// attributes finds the values of href and src attributes, as offsets.
func attributes(div []byte) [][2]int32 {
	var found [][2]int32
	for i := 0; i < len(div); i++ {
		rest := div[i:]
		width := 0
		switch {
		case bytes.HasPrefix(rest, []byte("href=")):
			width = len("href=")
		case bytes.HasPrefix(rest, []byte("src=")):
			width = len("src=")
		default:
			continue
		}
		// In JSON text a double quote inside a string is \", a single quote stands as it is.
		quote := []byte(`\"`)
		if bytes.HasPrefix(rest[width:], []byte("'")) {
			quote = []byte("'")
		} else if !bytes.HasPrefix(rest[width:], quote) {
			continue
		}
		from := i + width + len(quote)
		length := indexEscaped(div[from:], quote)
		if length < 0 {
			return found
		}
		found = append(found, [2]int32{int32(from), int32(from + length)})
		i = from + length
	}
	return found
}

// indexEscaped is bytes.Index in JSON text: what an escape ends with starts nothing, so \\" holds no \".
func indexEscaped(text, quote []byte) int {
	for i := 0; i < len(text); i++ {
		if bytes.HasPrefix(text[i:], quote) {
			return i
		}
		if text[i] == '\\' {
			i++
		}
	}
	return -1
}

// reparse parses text that was made from a parsed resource.
func reparse(text []byte) *Resource {
	r, issues := Parse(text)
	if issues != nil {
		panic("fhir: an edit broke the text: " + issues[0].Diagnostics)
	}
	return r
}
