// Opens cells with Google's Tink for JavaScript (npm tink-crypto 0.1.1) and seals what it opened, for TestTinkJavaScript:
// {keyset, cells: [{cell, aad}]} on standard input, all base64; [{opened, sealed}] on standard output.
globalThis.self = globalThis.window = globalThis; // it is made for browsers
const tink = require('tink-crypto/bundles/tink-crypto.umd.js');
const bytes = (s) => new Uint8Array(Buffer.from(s, 'base64'));
const text = (b) => Buffer.from(b).toString('base64');

async function main() {
  const { keyset, cells } = JSON.parse(require('fs').readFileSync(0, 'utf8'));
  tink.aead.register();
  const handle = tink.binaryInsecure.deserializeKeyset(bytes(keyset));
  const aead = await handle.getPrimitive(tink.aead.Aead);
  const out = [];
  for (const { cell, aad } of cells) {
    const opened = await aead.decrypt(bytes(cell), bytes(aad));
    out.push({ opened: text(opened), sealed: text(await aead.encrypt(opened, bytes(aad))) });
  }
  process.stdout.write(JSON.stringify(out));
}

main().catch((err) => {
  console.error(err);
  process.exit(1);
});
