package rest_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain demands that a server that was shut down leaves no goroutine of ours behind. Excused are those that fasthttp
// and Fiber start once for the process (the Date header, a clock), and fasthttp's sweeper, which ends up to ten seconds
// after its server.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.updateServerDate.func1"),
		goleak.IgnoreAnyFunction("github.com/gofiber/fiber/v2/utils.StartTimeStampUpdater.func1.1"),
		goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*workerPool).Start.func2"))
}
