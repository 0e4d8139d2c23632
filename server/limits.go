package main

import "github.com/chartkeep/chartkeep/server/rest"

// limits are the settings of how fast requests may come, each RATE/BURST: tokens a second, and tokens at most.
type limits struct {
	RateIP      rest.Rate `name:"rate-ip" help:"Requests of one address (IPv6: one /64), RATE/BURST or off." default:"1000/5000"`
	RateClient  rest.Rate `name:"rate-client" help:"Requests of one OAuth client, RATE/BURST; a search counts 5, a bundle 20." default:"1000/5000"`
	RateSubject rest.Rate `name:"rate-subject" help:"Requests of one user or service, counted likewise, RATE/BURST." default:"200/2000"`
	RateFailed  rest.Rate `name:"rate-failed" help:"Failed authentication of one network (/24, /64) or one client, RATE/BURST; a forged signature counts 5." default:"20/100"`
}

func (l *limits) rest() rest.Limits {
	return rest.Limits{IP: l.RateIP, Client: l.RateClient, Subject: l.RateSubject, Failed: l.RateFailed}
}

// loadLimits are those of a server under a load test: every bucket is asked, and none runs empty.
func loadLimits() rest.Limits {
	r := rest.Rate{PerSecond: 1e6, Burst: 1e6}
	return rest.Limits{IP: r, Client: r, Subject: r, Failed: r}
}
