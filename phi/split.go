package phi

import (
	"encoding/binary"

	"github.com/tidwall/gjson"

	"github.com/chartkeep/chartkeep/phi/fhir"
)

// subsettedCode marks a resource that is not whole (https://terminology.hl7.org/CodeSystem/v3-ObservationValue). It
// describes an answer, not the record, so it is not stored.
const subsettedCode = "SUBSETTED"

// split sorts a resource's top-level elements into its classes' contents. An element is written as its position in the
// source, its name and its own text, each with a length before it, so that any subset of classes joins to source order.
// Classes without elements are nil. Of meta, versionId, lastUpdated and a SUBSETTED tag are left out: the row and the
// answer state them.
func split(r *fhir.Resource) [NumClasses][]byte {
	var cells [NumClasses][]byte
	for i, e := range r.Elements {
		raw := e.Raw
		if e.Name == "meta" {
			if raw = storedMeta(raw); raw == nil {
				continue
			}
		}
		c := classOf(r.Type, e.Name)
		cell := binary.AppendUvarint(cells[c], uint64(i))
		cell = binary.AppendUvarint(cell, uint64(len(e.Name)))
		cell = append(cell, e.Name...)
		cell = binary.AppendUvarint(cell, uint64(len(raw)))
		cells[c] = append(cell, raw...)
	}
	return cells
}

// join appends the elements of the opened classes to dst in source order. The texts share the cells' memory. Cells that
// split did not write are errIntegrity.
func join(cells *[NumClasses][]byte, dst []fhir.Element) ([]fhir.Element, error) {
	names := classTable().names
	var heads [NumClasses]entry
	live := heads[:0]
	for _, cell := range cells {
		if len(cell) == 0 {
			continue
		}
		live = append(live, entry{rest: cell, position: -1})
		if err := live[len(live)-1].next(names); err != nil {
			return nil, err
		}
	}
	last := int64(-1)
	for len(live) > 0 {
		first := &live[0]
		for i := 1; i < len(live); i++ {
			if live[i].position < first.position {
				first = &live[i]
			}
		}
		if first.position == last { // of two cells: within one they ascend
			return nil, errIntegrity
		}
		last = first.position
		dst = append(dst, first.element)
		if len(first.rest) == 0 {
			*first = live[len(live)-1]
			live = live[:len(live)-1]
			continue
		}
		if err := first.next(names); err != nil {
			return nil, err
		}
	}
	return dst, nil
}

// entry walks over the elements of one cell.
type entry struct {
	rest     []byte
	position int64
	element  fhir.Element
}

func (e *entry) next(names map[string]string) error {
	position, n := binary.Uvarint(e.rest)
	if n <= 0 || position > 1<<31 || int64(position) <= e.position {
		return errIntegrity
	}
	e.rest, e.position = e.rest[n:], int64(position)
	name, ok := e.field()
	if !ok || len(name) == 0 {
		return errIntegrity
	}
	raw, ok := e.field()
	if !ok || len(raw) == 0 {
		return errIntegrity
	}
	known, ok := names[string(name)]
	if !ok {
		known = string(name)
	}
	e.element = fhir.Element{Name: known, Raw: raw}
	return nil
}

func (e *entry) field() ([]byte, bool) {
	length, n := binary.Uvarint(e.rest)
	if n <= 0 || length > uint64(len(e.rest)-n) {
		return nil, false
	}
	end := n + int(length)
	field := e.rest[n:end:end]
	e.rest = e.rest[end:]
	return field, true
}

// storedMeta is meta without what the server states itself, every other member in its own text; nil when nothing is
// left.
func storedMeta(raw []byte) []byte {
	return filterObject(raw, func(name string, value gjson.Result) (string, bool) {
		switch name {
		case "versionId", "lastUpdated", "_versionId", "_lastUpdated":
			return "", false
		case "tag":
			kept := filterArray(value, func(tag gjson.Result) bool { return tag.Get("code").String() != subsettedCode })
			return kept, kept != ""
		}
		return value.Raw, true
	})
}

func filterObject(raw []byte, keep func(name string, value gjson.Result) (string, bool)) []byte {
	out := []byte{'{'}
	gjson.ParseBytes(raw).ForEach(func(name, value gjson.Result) bool {
		text, ok := keep(name.String(), value)
		if !ok {
			return true
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, name.Raw...), ':'), text...)
		return true
	})
	if len(out) == 1 {
		return nil
	}
	return append(out, '}')
}

func filterArray(array gjson.Result, keep func(gjson.Result) bool) string {
	out := []byte{'['}
	array.ForEach(func(_, item gjson.Result) bool {
		if keep(item) {
			if len(out) > 1 {
				out = append(out, ',')
			}
			out = append(out, item.Raw...)
		}
		return true
	})
	if len(out) == 1 {
		return ""
	}
	return string(append(out, ']'))
}
