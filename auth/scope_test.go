package auth

import (
	"slices"
	"strings"
	"testing"
)

func TestParseScopes(t *testing.T) {
	all := []Interaction{Create, Read, Update, Delete, Search}
	for scope, want := range map[string]string{ // letters granted to user/ on Patient
		"user/Patient.rs":                         "rs",
		"user/Patient.r":                          "r",
		"user/Patient.cruds":                      "cruds",
		"user/*.cud":                              "cud",
		"user/Patient.read":                       "rs",
		"user/Patient.write":                      "cud",
		"user/Patient.*":                          "cruds",
		"user/*.*":                                "cruds",
		"user/*.read user/Patient.u":              "rus",
		"user/Patient.r user/Patient.s":           "rs",
		"openid user/Patient.d launch":            "d",
		"":                                        "",
		"user/Observation.cruds":                  "",
		"patient/Patient.cruds":                   "",
		"system/*.cruds":                          "",
		"user/Patient.":                           "",
		"user/Patient":                            "",
		"user/.rs":                                "",
		"user/Patient.sr":                         "", // letters out of order
		"user/Patient.rr":                         "",
		"user/Patient.rsx":                        "",
		"user/Patient.READ":                       "",
		"user/Patient.reads":                      "",
		"user/patient.rs":                         "",
		"user/Patient/1.rs":                       "",
		"user/Pat*.rs":                            "",
		"user/Patient.rs?_id=1":                   "",
		"user/*.rs?category=x":                    "",
		"user/Patient?x=1.rs":                     "",
		"user//Patient.rs":                        "",
		"User/Patient.rs":                         "",
		"user/Patient.rs\tuser/Patient.c":         "",
		"user/Patient.rs,user/Patient.c":          "",
		"user/**.rs":                              "",
		"user/" + strings.Repeat("P", 65) + ".rs": "",
	} {
		s := ParseScopes(scope)
		got := ""
		for _, i := range all {
			if s.Covers(LevelUser, "Patient", i) {
				got += string(rune(i))
			}
		}
		if got != want {
			t.Errorf("%q grants %q, want %q", scope, got, want)
		}
	}
	s := ParseScopes("openid fhirUser launch/patient patient/*.rs user/Broken")
	for name, want := range map[string]bool{"openid": true, "fhirUser": true, "launch/patient": true, "patient/*.rs": false, "user/Broken": false, "": false} {
		if s.Has(name) != want {
			t.Errorf("Has(%q) is %v", name, !want)
		}
	}
	if s.Covers(LevelPatient, "Observation", 'x') || s.Covers(Level(9), "Observation", Read) || !s.Covers(LevelPatient, "Observation", Read) {
		t.Error("unknown letter or level")
	}
	if (Scopes{}).Covers(LevelUser, "Patient", Read) || (Scopes{}).Has("openid") {
		t.Error("zero scopes cover something")
	}
}

// FuzzParseScopes holds that letters come from scopes that spell them: no string grants on a level that it does not name.
func FuzzParseScopes(f *testing.F) {
	for _, s := range []string{"user/*.cruds", "patient/Observation.rs?x=1", "system/Patient.read openid", "user/Patient.", "//.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		s := ParseScopes(in)
		for level, prefix := range map[Level]string{LevelPatient: "patient/", LevelUser: "user/", LevelSystem: "system/"} {
			for _, i := range []Interaction{Create, Read, Update, Delete, Search} {
				if !s.Covers(level, "Patient", i) {
					continue
				}
				if !slices.ContainsFunc(strings.Split(in, " "), func(one string) bool {
					rest, ok := strings.CutPrefix(one, prefix)
					return ok && (strings.HasPrefix(rest, "*.") || strings.HasPrefix(rest, "Patient.")) && !strings.Contains(one, "?")
				}) {
					t.Fatalf("%q grants %c on %s", in, i, prefix)
				}
			}
		}
	})
}
