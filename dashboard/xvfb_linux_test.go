package main

import (
	"bufio"
	"encoding/binary"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestWindow builds the program as it ships and looks at its real window on a display without a screen: the sign-in page
// must be painted, which takes the front end, the policy with its nonce, and the session to work in the window's engine.
// With -artifacts the picture is kept.
func TestWindow(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: builds a program of its own")
	}
	if exec.CommandContext(t.Context(), "pkg-config", "--exists", "webkit2gtk-4.1", "gtk+-3.0").Run() != nil {
		t.Skip("SKIPPED: the window needs apt-get install libgtk-3-dev libwebkit2gtk-4.1-dev")
	}
	for _, tool := range []string{"Xvfb", "dbus-run-session"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("SKIPPED: the window's test needs apt-get install xvfb dbus")
		}
	}
	if _, err := os.Stat("frontend/dist/index.html"); err != nil {
		t.Skip("SKIPPED: the front end is not built: npm run build in dashboard/frontend")
	}
	program := filepath.Join(t.TempDir(), "chartkeep-dashboard")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", "desktop,production,webkit2_41", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("building the window: %v\n%s", err, out)
	}

	frames := t.TempDir()
	number, display, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	launch(t, &exec.Cmd{
		Path: look(t, "Xvfb"), Args: []string{"Xvfb", "-displayfd", "3", "-screen", "0", "1280x800x24", "-fbdir", frames, "-nolisten", "tcp"},
		ExtraFiles: []*os.File{display},
	})
	display.Close()
	n, err := bufio.NewReader(number).ReadString('\n')
	if err != nil {
		t.Fatalf("starting Xvfb: %v", err)
	}
	api := newFake(t)
	home := t.TempDir() // WebKit writes caches and settings there
	launch(t, &exec.Cmd{
		Path: look(t, "dbus-run-session"), Args: []string{"dbus-run-session", "--", program, "--server", api.URL},
		Env: []string{"DISPLAY=:" + strings.TrimSpace(n), "HOME=" + home, "XDG_RUNTIME_DIR=" + home, "PATH=" + os.Getenv("PATH"), "GTK_A11Y=none", "NO_AT_BRIDGE=1", "LIBGL_ALWAYS_SOFTWARE=1"},
	})

	button := color.RGBA{0x0b, 0x72, 0x85, 0xff} // cyan 9, the primary colour in light
	var screen *image.RGBA
	var painted int
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if screen = frame(t, filepath.Join(frames, "Xvfb_screen0")); screen != nil {
			if painted = count(screen, button); painted > 5000 {
				break
			}
		}
	}
	if screen == nil {
		t.Fatal("the display has no picture")
	}
	if f, err := os.Create(filepath.Join(t.ArtifactDir(), "window.png")); err == nil {
		err = png.Encode(f, screen)
		if f.Close() != nil || err != nil {
			t.Error("the picture was not kept")
		}
	}
	if painted <= 5000 {
		t.Errorf("%d pixels have the colour of the sign-in button", painted)
	}
}

func look(t *testing.T, tool string) string {
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// launch runs a program, with its children, until the test ends.
func launch(t *testing.T, c *exec.Cmd) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		t.Fatalf("starting %s: %v", c.Args[0], err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-c.Process.Pid, syscall.SIGTERM)
		ended := make(chan error, 1)
		go func() { ended <- c.Wait() }()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
			<-ended
		}
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%s said:\n%s", c.Args[0], text)
		}
		log.Close()
	})
}

// frame reads Xvfb's frame buffer: an X window dump (XWDFile.h) of 32-bit pixels. It returns nil when there is none yet.
func frame(t *testing.T, name string) *image.RGBA {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil || len(data) < 100 {
		return nil
	}
	field := func(i int) int { return int(binary.BigEndian.Uint32(data[4*i:])) }
	width, height, bits, line := field(4), field(5), field(11), field(12)
	start := field(0) + 12*field(19)
	if bits != 32 || start+line*height > len(data) {
		t.Fatalf("a frame of %dx%d with %d bits a pixel in %d bytes", width, height, bits, len(data))
	}
	picture := image.NewRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			pixel := binary.LittleEndian.Uint32(data[start+y*line+4*x:])
			picture.SetRGBA(x, y, color.RGBA{byte(pixel >> 16), byte(pixel >> 8), byte(pixel), 0xff})
		}
	}
	return picture
}

func count(picture *image.RGBA, c color.RGBA) int {
	n := 0
	for i := 0; i < len(picture.Pix); i += 4 {
		if picture.Pix[i] == c.R && picture.Pix[i+1] == c.G && picture.Pix[i+2] == c.B {
			n++
		}
	}
	return n
}
