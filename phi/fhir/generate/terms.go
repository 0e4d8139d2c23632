package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// terminology is what we read of a ValueSet or CodeSystem.
type terminology struct {
	ResourceType, URL, Content string
	Concept                    []concept
	Compose                    struct {
		Include []struct {
			System   string
			Concept  []concept
			Filter   []struct{}
			ValueSet []string
		}
		Exclude []struct{}
	}
}

type concept struct {
	Code    string
	Concept []concept
}

func writeValueSets(w io.Writer, terms []terminology, bound map[string]bool) error {
	sets, systems := map[string]terminology{}, map[string]terminology{}
	for _, t := range terms {
		switch t.ResourceType {
		case "ValueSet":
			sets[t.URL] = t
		case "CodeSystem":
			systems[t.URL] = t
		}
	}
	for _, url := range slices.Sorted(maps.Keys(bound)) {
		set, ok := sets[url]
		if !ok {
			return fmt.Errorf("value set %s: not defined", url)
		}
		fmt.Fprintf(w, "valueset %s\n", short(url))
		if len(set.Compose.Exclude) > 0 {
			return fmt.Errorf("value set %s: excludes are not understood", url)
		}
		for _, in := range set.Compose.Include {
			concepts := in.Concept
			if len(concepts) == 0 {
				concepts = systems[in.System].Concept
			}
			if len(concepts) == 0 || len(in.Filter) > 0 || len(in.ValueSet) > 0 {
				return fmt.Errorf("value set %s: cannot list the codes of %s", url, in.System)
			}
			fmt.Fprintf(w, " %s\t%s\n", in.System, strings.Join(codes(nil, concepts), "\t"))
		}
	}
	return nil
}

func codes(into []string, concepts []concept) []string {
	for _, c := range concepts {
		into = codes(append(into, c.Code), c.Concept)
	}
	return into
}
