package fhir

import (
	"strconv"
	"strings"
)

// path is the expression of one node. Nobody pays for the paths of sound values.
func (r *Resource) path(n int32) string {
	p := r.paths()
	return p.of(n)
}

// paths names nodes in ascending order in linear time, however many siblings they have.
type paths struct {
	r      *Resource
	levels []level // the containers around the node named last
	text   []byte
}

// level is a container with the child last looked at.
type level struct {
	node, child int32
	index       int // of the child in an array
	prefix      int // length of the container's own path
}

func (r *Resource) paths() paths {
	text := "Resource"
	if t := r.child(0, "resourceType"); t != 0 && Known(r.str(t)) {
		text = r.str(t)
	}
	return paths{r: r, text: []byte(text), levels: []level{{node: 0, child: 1, prefix: len(text)}}}
}

// of is the expression of a node: FHIRPath's simple subset, choices under their JSON names. An underscore that marks a
// primitive's extensions is left out.
func (p *paths) of(n int32) string {
	nodes := p.r.nodes
	for len(p.levels) > 1 && n >= nodes[p.levels[len(p.levels)-1].node].after {
		p.levels = p.levels[:len(p.levels)-1]
	}
	for {
		at := &p.levels[len(p.levels)-1]
		p.text = p.text[:at.prefix]
		if at.node == n {
			return string(p.text)
		}
		for n >= nodes[at.child].after {
			at.child = nodes[at.child].after
			at.index++
		}
		if nodes[at.node].kind == '[' {
			p.text = append(strconv.AppendInt(append(p.text, '['), int64(at.index), 10), ']')
		} else {
			p.text = append(append(p.text, '.'), plain(strings.TrimPrefix(string(p.r.name(at.child)), "_"))...)
		}
		p.levels = append(p.levels, level{node: at.child, child: at.child + 1, prefix: len(p.text)})
	}
}

// plain returns a name that looks like an element's, or a question mark: names come from the sender and could carry
// anything.
func plain(name string) string {
	if len(name) == 0 || len(name) > 64 {
		return "?"
	}
	for i := range len(name) {
		if c := name[i]; !isDigit(c) && (c|0x20 < 'a' || c|0x20 > 'z') {
			return "?"
		}
	}
	return name
}
