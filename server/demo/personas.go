package demo

import "slices"

// Persona is a demo user or client.
type Persona struct {
	Name     string   // e.g. dr-rivera
	Display  string   // e.g. Dr. Ana Rivera
	What     string   // what it is, in plain words
	Roles    []string // clinician, nurse, registrar, billing, researcher, patient, officer, security, admin, backend
	FHIRUser string   // Practitioner/…, Patient/…; "" for none
	Patient  string   // launch patient of patient personas
	Scope    string   // default scope of `chartkeep token`
	Client   string   // client id
	ACR      string   // how strongly the sign-in was proved; "" for a backend service
	AMR      []string // by which means (RFC 8176)
}

// Practitioner ids that generated Encounters and CareTeams name and that the personas are.
const (
	RiveraID = "6f1d3a52-4d0e-4a37-9d53-0d8ff2a4a001"
	ChenID   = "6f1d3a52-4d0e-4a37-9d53-0d8ff2a4a002"
	OkaforID = "6f1d3a52-4d0e-4a37-9d53-0d8ff2a4a003"
)

// Authentication context classes of the demo's tokens.
const (
	acrPassword = "urn:chartkeep:acr:pwd"
	acrTwo      = "urn:chartkeep:acr:mfa"
)

// classes are the authentication context classes that a persona's sign-in can have, the strongest first.
func (p Persona) classes() []string {
	if p.ACR == acrTwo {
		return []string{acrTwo, acrPassword}
	}
	return []string{p.ACR}
}

// reach returns the first of the wanted classes that the persona can sign in with, "" for its own when nothing is wanted.
func (p Persona) reach(wanted []string) (class string, ok bool) {
	if len(wanted) == 0 {
		return "", true
	}
	for _, class := range wanted {
		if slices.Contains(p.classes(), class) {
			return class, true
		}
	}
	return "", false
}

// signIn is a sign-in of the class, "" being the persona's own, and the means that it took (RFC 8176).
func (p Persona) signIn(class string) (acr string, amr []string) {
	switch class {
	case "", p.ACR:
		return p.ACR, p.AMR
	case acrPassword:
		return class, []string{"pwd"}
	default:
		return class, p.AMR
	}
}

// Personas lists DESIGN.md's personas. patientOne is the id of the patient that patient-1 is.
func Personas(patientOne string) []Persona {
	const signIn = "openid fhirUser"
	people := []Persona{
		{
			Name: "dr-rivera", Display: "Dr. Ana Rivera", Roles: []string{"clinician"},
			What:     "clinician, treats every second patient",
			FHIRUser: "Practitioner/" + RiveraID, Scope: "user/*.cruds " + signIn,
		},
		{
			Name: "dr-chen", Display: "Dr. Wei Chen", Roles: []string{"clinician"},
			What:     "clinician, treats none of the patients",
			FHIRUser: "Practitioner/" + ChenID, Scope: "user/*.cruds " + signIn,
		},
		{
			Name: "nurse-okafor", Display: "Ngozi Okafor, RN", Roles: []string{"nurse"},
			What:     "nurse, in the care team of every fourth patient",
			FHIRUser: "Practitioner/" + OkaforID, Scope: "user/*.crus " + signIn,
		},
		{
			Name: "registrar-lee", Display: "Jordan Lee", Roles: []string{"registrar"},
			What: "registrar, sees demographics only", Scope: "user/*.crs " + signIn,
		},
		{
			Name: "billing-novak", Display: "Petra Novák", Roles: []string{"billing"},
			What: "billing, sees coverage and encounters, no clinical detail", Scope: "user/*.rs " + signIn,
		},
		{
			Name: "researcher-kim", Display: "Min-jun Kim", Roles: []string{"researcher"},
			What: "researcher, sees de-identified records", Scope: "user/*.rs " + signIn,
		},
		{
			Name: "patient-1", Display: "The first generated patient", Roles: []string{"patient"},
			What:     "patient, sees the own records only",
			FHIRUser: "Patient/" + patientOne, Patient: patientOne,
			Scope: "patient/*.rs launch/patient " + signIn, ACR: acrPassword, AMR: []string{"pwd"},
		},
		{
			Name: "officer-diaz", Display: "Carmen Díaz", Roles: []string{"officer"},
			What: "compliance officer, reads the audit trail, no charts", Scope: "user/AuditEvent.rs " + signIn,
		},
		{
			Name: "security-amari", Display: "Youssef Amari", Roles: []string{"security"},
			What: "security analyst, reads the audit trail and metrics, no charts", Scope: "user/AuditEvent.rs " + signIn,
		},
		{
			Name: "assessor-lund", Display: "Freja Lund", Roles: []string{"assessor"},
			What: "outside assessor, reads the audit trail with aliases in the place of people", Scope: signIn,
		},
		{
			Name: "admin-root", Display: "Sam Root", Roles: []string{"admin"},
			What: "administrator of roles and relationships, no charts", Scope: signIn,
		},
		{
			Name: "app-backend", Display: "Backend service", Roles: []string{"backend"},
			What: "backend service with system scopes (SMART Backend Services)", Scope: "system/*.cruds", Client: backendClient,
		},
	}
	for i := range people {
		p := &people[i]
		if p.Client != "" {
			continue // a service does not sign in
		}
		p.Client = commandClient
		if p.ACR == "" {
			p.ACR, p.AMR = acrTwo, []string{"pwd", "otp"}
		}
	}
	return people
}
