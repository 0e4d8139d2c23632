package main

import (
	"context"
	"fmt"
	"io"

	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// keysRewrapVerb begins a new epoch.
type keysRewrapVerb struct {
	deployment `embed:""`
	By         string `help:"Who asks for it; the user of this machine when empty." placeholder:"NAME"`
}

// Help is shown by --help.
func (*keysRewrapVerb) Help() string {
	return `Begins a new epoch: makes a key-encryption key under the KMS key that the first --kms names, wraps every data key and secret under it, and removes the old
key-encryption key when it wraps nothing any more. No record is touched, and readers and writers notice nothing. Do it every month, with a new KMS key in
front of the old one: when the old KMS key is destroyed, the keys in old backups are dead, and with them what was erased since. Give every running instance
both KMS keys first. Stopped or killed anywhere, nothing is lost, and the same command goes on.
Example: chartkeep keys rewrap --kms NEW-KEY-URI --kms OLD-KEY-URI --database-url postgres://chartkeep@db/chartkeep --journal /var/lib/chartkeep/keys
Example: chartkeep keys rewrap --data .chartkeep`
}

// Run rewraps.
func (v *keysRewrapVerb) Run(ctx context.Context, t terminal) error {
	return v.onKeys(ctx, t, 1, func(r *rooms, storage *postgres.Rotation) error {
		rotation := r.records.Rotation(phi.RotationConfig{By: operator(v.By)})
		var epoch phi.Epoch
		err := watchRotation(t.err, rotation, func() (err error) {
			epoch, err = rotation.Rewrap(ctx, storage)
			return err
		})
		fmt.Fprintf(t.out, "%d keys wrapped anew\n", rotation.Progress().KeysDone)
		if err != nil {
			return err
		}
		sayEpoch(t.out, epoch)
		return nil
	})
}

// sayEpoch says what an epoch's end means for KMS keys and backups.
func sayEpoch(w io.Writer, epoch phi.Epoch) {
	fmt.Fprintf(w, "%s, wrapped by %s, wraps every key now\n", epoch.Active.ID, epoch.Active.Root)
	for _, k := range epoch.Removed {
		fmt.Fprintf(w, "%s is removed\n", k.ID)
		if k.Root == epoch.Active.Root {
			fmt.Fprintf(w, `It was wrapped by the same KMS key, %s: as long as that exists, backups of the keys made before now open with it, and what was erased since is in them.
To end that, make a new KMS key, name it first with --kms, and run this again.
`, k.Root)
			continue
		}
		fmt.Fprintf(w, `The KMS key %s wraps nothing of this database any more. When no instance names it with --kms, it may be scheduled for deletion.
With it goes every backup of the keys made before now: backups of the records open only with keys that were backed up later (make that backup first, and
prove it with chartkeep keys drill), and what was erased before then opens no more, from any backup.
`, k.Root)
	}
}
