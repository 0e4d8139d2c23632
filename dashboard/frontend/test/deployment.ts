import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

const repository = resolve(import.meta.dirname, '../../..');

/** A real demo and a real dashboard in front of it, in a folder of their own. */
export interface Deployment {
  dashboard: string;
  fhir: string;
  /** A bearer token of a persona. */
  token: (persona: string) => string;
  /** Takes the server away, not the dashboard. */
  stopServer: () => Promise<void>;
  stop: () => Promise<void>;
}

export async function deploy(): Promise<Deployment> {
  if (!existsSync(join(repository, 'dashboard/frontend/dist/index.html'))) throw new Error('build the front end first: npm run build');
  const dir = mkdtempSync(join(tmpdir(), 'chartkeep-dashboard-'));
  chmodSync(dir, 0o711); // as root, the demo's PostgreSQL runs as another user
  const running: ChildProcess[] = [];
  const end = async (child: ChildProcess | undefined) => {
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGTERM');
    await exited;
  };
  const stop = async () => {
    for (const child of running.reverse()) await end(child);
    rmSync(dir, { recursive: true, force: true });
  };

  const program = (name: string, source: string) => {
    execFileSync('go', ['build', '-o', join(dir, name), source], { cwd: repository, stdio: ['ignore', 'inherit', 'inherit'] });
    return join(dir, name);
  };
  /** Starts a program and waits for what it prints when it is ready. */
  const start = (command: string, args: string[], ready: RegExp) =>
    new Promise<RegExpExecArray>((resolve, reject) => {
      const child = spawn(command, args, { cwd: dir, stdio: ['ignore', 'pipe', 'pipe'] });
      running.push(child);
      let said = '';
      const hear = (text: Buffer) => {
        said += text.toString();
        const found = ready.exec(said);
        if (found) resolve(found);
      };
      child.stdout.on('data', hear);
      child.stderr.on('data', hear);
      child.on('error', reject);
      child.on('exit', (code) => reject(new Error(`${command} ended with ${code}:\n${said}`)));
    });

  try {
    const chartkeep = program('chartkeep', './server');
    const dashboard = program('chartkeep-dashboard', './dashboard');
    const data = join(dir, 'demo');
    await start(chartkeep, ['demo', '--data', data, '--addr', '127.0.0.1:0', '--patients', '5'], /Chartkeep is ready/);
    const { fhir } = JSON.parse(readFileSync(join(data, 'demo.json'), 'utf8')) as { fhir: string };
    const at = await start(dashboard, ['--web', '--data', data], /http:\/\/[\d.:]+\//);
    const token = (persona: string) => execFileSync(chartkeep, ['token', persona, '--data', data], { cwd: dir, encoding: 'utf8' }).trim();
    return { dashboard: at[0], fhir, token, stopServer: () => end(running[0]), stop };
  } catch (e) {
    await stop();
    throw e;
  }
}
