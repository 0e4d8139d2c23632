package auth_test

import (
	"context"
	"fmt"

	"github.com/chartkeep/chartkeep/auth"
)

// ward is a storage with one rule and one relationship.
type ward struct{}

func (ward) Policy(context.Context) (auth.Policy, error) {
	return auth.Policy{Version: 7, Permissions: []auth.Permission{{
		Role: "clinician", Type: "*", Interactions: "cruds", View: "full",
		Relation: auth.RelationTreatment, Purposes: []string{"TREAT"},
	}}}, nil
}
func (ward) Epochs(context.Context) (auth.Epochs, error) {
	return auth.Epochs{Policy: 7}, nil
}
func (ward) Emergencies(context.Context) ([]auth.Grant, error) { return nil, nil }
func (ward) Facts(_ context.Context, a auth.Actor, patients []string) ([]auth.Fact, error) {
	facts := make([]auth.Fact, len(patients))
	for i, patient := range patients {
		if a.Practitioner == "rivera" && patient == "pat-1" {
			facts[i].Related = "Encounter"
		}
	}
	return facts, nil
}

func ExampleAccess_Check() {
	ctx := context.Background()
	access, err := auth.NewAccess(ctx, auth.AccessConfig{Storage: ward{}})
	if err != nil {
		panic(err)
	}
	defer access.Close()
	for _, who := range []string{"rivera", "chen"} {
		p := &auth.Principal{ // made by Verifier.Authenticate in a server
			Roles: []string{"clinician"}, Scopes: auth.ParseScopes("user/Observation.rs"), FHIRUser: "Practitioner/" + who,
		}
		for _, i := range []auth.Interaction{auth.Read, auth.Update} {
			d := access.Check(ctx, p, auth.Request{Interaction: i, Type: "Observation", Patients: []string{"pat-1"}})
			fmt.Printf("%s %c: %v, %s, view %q for %q by %q\n", who, i, d.Allowed, d.Reason, d.View, d.Purpose, d.Rule)
		}
	}
	// Output:
	// rivera r: true, allowed, view "full" for "TREAT" by "clinician:*:r:treatment"
	// rivera u: false, scope-missing, view "" for "" by ""
	// chen r: false, relationship-missing, view "" for "TREAT" by "clinician:*:r:treatment"
	// chen u: false, scope-missing, view "" for "" by ""
}

func ExampleParseScopes() {
	s := auth.ParseScopes("launch/patient patient/Observation.rs patient/Condition.read")
	fmt.Println(s.Covers(auth.LevelPatient, "Observation", auth.Read), s.Covers(auth.LevelPatient, "Observation", auth.Update))
	fmt.Println(s.Covers(auth.LevelUser, "Condition", auth.Search), s.Has("launch/patient"))
	// Output:
	// true false
	// false true
}
