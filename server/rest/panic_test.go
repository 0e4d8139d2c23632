package rest

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/valyala/fasthttp"
)

// TestBodyIsCleared holds that nothing of a request waits in fasthttp's buffers for the next one, also when its handler panics, and
// that the log of a panic has the place and no value.
func TestBodyIsCleared(t *testing.T) {
	var log bytes.Buffer
	s := &Server{cfg: Config{Timeout: time.Minute}, logger: slog.New(slog.NewJSONHandler(&log, nil)), ctx: context.Background()}
	app := fiber.New()
	for name, serve := range map[string]func(*call) error{
		"answered": func(c *call) error { return c.send(http.StatusOK, []byte("{}")) },
		"panicked": func(c *call) error { panic(string(c.http.Request().Body())) },
	} {
		var request fasthttp.RequestCtx
		request.Request.Header.SetMethod(http.MethodPost)
		request.Request.SetBodyString("secretly weighed")
		body := request.Request.Body()
		fc := app.AcquireCtx(&request)
		_ = s.handle(fc, &route{pattern: "/mounted/", guard: guard{kind: guardMounted}, serve: serve})
		app.ReleaseCtx(fc)
		if len(body) == 0 || strings.Trim(string(body), "\x00") != "" {
			t.Errorf("%s: %q is left of the request", name, body)
		}
	}
	if !strings.Contains(log.String(), "TestBodyIsCleared.func2:") || strings.Contains(log.String(), "weighed") {
		t.Errorf("logged %s", &log)
	}
}
