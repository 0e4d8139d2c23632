package fhir

// Walk returns a copy from which visit dropped or in which it replaced values; it is made for de-identification.
//
// visit is called for every value below the resource, parents first, with the value's compact text: primitives, datatypes
// ("HumanName"), backbone elements (their type is their path, "Patient.contact"), contained resources (their own type),
// the extensions of a primitive (type "Element"; the path is the primitive's), and values that the tables do not know (type
// ""). Array items are visited one by one; the array itself is not. path is made of element names as they stand in JSON,
// without indexes ("Patient.name.given"); inside a contained resource or a Bundle's entry it begins anew with that
// resource's type, so that one rule covers both.
//
// keep false drops the value. A replacement other than nil is JSON text that takes the value's place and is not visited.
// Otherwise the value stays, and visit goes on to its parts. Objects and arrays that lose all their content vanish with
// their names. With a primitive go its extensions; in an array of primitives and the array of its extensions the other
// items stay aligned. resourceType and id of the resource are not visited. Walk panics when a replacement is not JSON.
func (r *Resource) Walk(visit func(path, fhirType string, raw []byte) (replacement []byte, keep bool)) *Resource {
	if len(r.nodes) == 0 {
		return &Resource{}
	}
	w := walker{r: r, visit: visit, element: definitions().types["Element"]}
	text := w.object(0, r.Type, definitions().types[r.Type])
	return reparse(text)
}

type walker struct {
	r       *Resource
	visit   func(path, fhirType string, raw []byte) (replacement []byte, keep bool)
	element *typ
}

// object returns what stays of an object, nil when nothing does.
func (w *walker) object(n int32, path string, t *typ) []byte {
	r := w.r
	out := []byte{'{'}
	partners := map[int32][]byte{} // results of members that were made with their partner
	for c := n + 1; c < r.nodes[n].after; c = r.nodes[c].after {
		name := string(r.name(c))
		text, made := partners[c]
		if !made {
			stem := name
			if name != "" && name[0] == '_' && t.at(r.name(c)) == w.element {
				stem = name[1:]
			}
			switch e := t.elements[stem]; {
			case name == "resourceType" && (n == 0 || t.kind == "resource"), name == "id" && n == 0:
				text = r.raw(c)
			case e == nil:
				text = w.value(c, path+"."+name, nil)
			case e.typ.kind == "primitive":
				value, extensions := r.child(n, stem), r.child(n, "_"+stem)
				a, b := w.primitive(value, extensions, path+"."+stem, e.typ)
				if partners[extensions] = b; c == value {
					text = a
				} else {
					partners[value], text = a, b
				}
			default:
				text = w.member(c, path+"."+name, e.typ)
			}
		}
		if text == nil {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(appendQuoted(out, name), ':'), text...)
	}
	if len(out) == 1 {
		return nil
	}
	return append(out, '}')
}

// member returns what stays of an element that is no primitive.
func (w *walker) member(n int32, path string, t *typ) []byte {
	if w.r.nodes[n].kind != '[' {
		return w.value(n, path, t)
	}
	var items [][]byte
	for i := n + 1; i < w.r.nodes[n].after; i = w.r.nodes[i].after {
		if text := w.value(i, path, t); text != nil {
			items = append(items, text)
		}
	}
	return array(items)
}

// array makes an array, nil when there is nothing in it but nothing; a nil item among others is null.
func array(items [][]byte) []byte {
	out := []byte{'['}
	content := false
	for i, item := range items {
		if i > 0 {
			out = append(out, ',')
		}
		if item == nil {
			out = append(out, "null"...)
			continue
		}
		content = true
		out = append(out, item...)
	}
	if !content {
		return nil
	}
	return append(out, ']')
}

// primitive returns what stays of a primitive and of its extensions; either node may be 0, for none.
func (w *walker) primitive(value, extensions int32, path string, t *typ) (values, extended []byte) {
	if w.kind(value) != '[' && w.kind(extensions) != '[' {
		return w.one(value, extensions, path, t)
	}
	xs, es := w.items(value), w.items(extensions)
	var keptValues, keptExtended [][]byte
	for i := range max(len(xs), len(es)) {
		var x, e int32
		if i < len(xs) {
			x = xs[i]
		}
		if i < len(es) {
			e = es[i]
		}
		if a, b := w.one(x, e, path, t); a != nil || b != nil {
			keptValues, keptExtended = append(keptValues, a), append(keptExtended, b)
		}
	}
	return array(keptValues), array(keptExtended)
}

func (w *walker) kind(n int32) byte {
	if n == 0 {
		return 'n'
	}
	return w.r.nodes[n].kind
}

func (w *walker) items(n int32) []int32 {
	if n == 0 {
		return nil
	}
	if w.r.nodes[n].kind != '[' {
		return []int32{n}
	}
	var items []int32
	for i := n + 1; i < w.r.nodes[n].after; i = w.r.nodes[i].after {
		items = append(items, i)
	}
	return items
}

func (w *walker) one(value, extensions int32, path string, t *typ) (a, b []byte) {
	if w.kind(value) != 'n' {
		if a = w.value(value, path, t); a == nil {
			return nil, nil
		}
	}
	if w.kind(extensions) != 'n' {
		b = w.value(extensions, path, w.element)
	}
	return a, b
}

// value visits one value and returns what stays of it. t is nil for an unknown element.
func (w *walker) value(n int32, path string, t *typ) []byte {
	name, inside := "", path
	if t != nil && t.kind == "any" {
		if t = w.r.inner(n); t != nil {
			inside = t.name
		}
	}
	if t != nil {
		name = t.name
	} else {
		t = &typ{}
	}
	replacement, keep := w.visit(path, name, w.r.raw(n))
	switch {
	case !keep:
		return nil
	case replacement != nil:
		return replacement
	case w.r.nodes[n].kind == '{':
		return w.object(n, inside, t)
	case w.r.nodes[n].kind == '[':
		return w.member(n, inside, t)
	}
	return w.r.raw(n)
}
