package fhir

// typed visits every value whose type the tables know, parents before children, in the text's order. owner is the type
// of the object that the value stands in, t its own; an array is not visited, its items are. Values of unknown elements
// are passed over.
func (r *Resource) typed(visit func(n int32, owner, t *typ)) {
	if len(r.nodes) == 0 {
		return
	}
	if t := definitions().types[r.Type]; t != nil {
		r.typedObject(0, t, visit)
	}
}

func (r *Resource) typedObject(n int32, owner *typ, visit func(n int32, owner, t *typ)) {
	for c := n + 1; c < r.nodes[n].after; c = r.nodes[c].after {
		t := owner.at(r.name(c))
		if t == nil {
			continue
		}
		if r.nodes[c].kind != '[' {
			r.typedValue(c, owner, t, visit)
			continue
		}
		for i := c + 1; i < r.nodes[c].after; i = r.nodes[i].after {
			r.typedValue(i, owner, t, visit)
		}
	}
}

func (r *Resource) typedValue(n int32, owner, t *typ, visit func(n int32, owner, t *typ)) {
	if t.kind == "any" {
		if t = r.inner(n); t == nil {
			return
		}
	}
	visit(n, owner, t)
	if r.nodes[n].kind == '{' {
		r.typedObject(n, t, visit)
	}
}

// inner is the type of a resource inside a resource, nil when unknown.
func (r *Resource) inner(n int32) *typ {
	if t := definitions().types[r.childString(n, "resourceType")]; t != nil && t.kind == "resource" {
		return t
	}
	return nil
}

// at is the type of a property: of the element, or Element for the extensions of a primitive ("_birthDate"). nil when
// there is no such element.
func (t *typ) at(name []byte) *typ {
	if e := t.elements[string(name)]; e != nil {
		return e.typ
	}
	if len(name) > 1 && name[0] == '_' {
		if e := t.elements[string(name[1:])]; e != nil && e.typ.kind == "primitive" {
			return definitions().types["Element"]
		}
	}
	return nil
}
