package audit

import "syscall"

func space(path string) (Space, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil {
		return Space{}, err
	}
	files := int64(s.Ffree)
	if s.Files == 0 { // a file system that makes inodes as it needs them
		files = -1
	}
	return Space{Free: int64(s.Bavail) * s.Bsize, Total: int64(s.Blocks) * s.Bsize, Files: files}, nil
}
