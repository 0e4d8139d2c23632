package rest

import (
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
)

// panicked logs a panic, from the function that recovered it: the type of its value, and the functions and lines that led to it.
// Neither the value nor arguments, as runtime/debug.Stack has them: either may quote a record.
func panicked(logger *slog.Logger, value any, where, requestID string) {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])]) // not Callers, panicked and who recovered
	var stack []string
	for more := true; more; {
		var f runtime.Frame
		if f, more = frames.Next(); f.Function != "" {
			stack = append(stack, f.Function+":"+strconv.Itoa(f.Line))
		}
	}
	logger.Error("panicked", slog.String("route", where), slog.String("request_id", requestID), slog.String("type", fmt.Sprintf("%T", value)), slog.Any("stack", stack))
}
