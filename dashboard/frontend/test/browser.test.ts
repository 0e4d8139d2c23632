import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { type Browser, chromium, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

import { deploy, type Deployment } from './deployment';

const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';
const there = existsSync(executablePath);
if (!there) console.warn(`SKIPPED: the browser test needs Chromium at ${executablePath} (apt-get install chromium, or set CHROMIUM)`);

/** npm run screenshot */
const screenshot = import.meta.env.MODE === 'screenshot';

describe.skipIf(!there)('the dashboard in a browser', { timeout: 60_000 }, () => {
  let deployment: Deployment;
  let browser: Browser;
  let page: Page;
  const faults: string[] = []; // console errors, exceptions, CSP violations of our own pages
  let patient: string;
  let readId: string;
  let refusedId: string;

  beforeAll(async () => {
    deployment = await deploy();
    browser = await chromium.launch({
      executablePath,
      args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
    });
    const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, colorScheme: 'light', timezoneId: 'America/Los_Angeles' });
    page = await context.newPage();
    await page.exposeFunction('violated', (what: string) => faults.push(what));
    await page.addInitScript(() => {
      document.addEventListener('securitypolicyviolation', (e) => {
        (window as unknown as { violated: (what: string) => void }).violated(`CSP: ${e.violatedDirective} ${e.blockedURI} ${e.sample}`);
      });
    });
    page.on('pageerror', (e) => faults.push(String(e)));
    page.on('console', (m) => {
      if (m.type() === 'error' && m.location().url.startsWith(deployment.dashboard)) faults.push(m.text());
    });

    // Something to look at: a clinician who treats the patient, and one who does not.
    const rivera = deployment.token('dr-rivera');
    const chen = deployment.token('dr-chen');
    const found = (await (await get('/Patient?_count=50', rivera)).json()) as { entry: { resource: { id: string } }[] };
    patient = found.entry[0]?.resource.id ?? '';
    const allowed = await get(`/Patient/${patient}`, rivera);
    const denied = await get(`/Patient/${patient}`, chen);
    expect([allowed.status, denied.status >= 400]).toEqual([200, true]);
    readId = allowed.headers.get('X-Request-Id') ?? '';
    refusedId = denied.headers.get('X-Request-Id') ?? '';
    if (screenshot) await morning(found.entry.map((e) => e.resource.id));
  }, 180_000);

  afterAll(async () => {
    await browser?.close();
    await deployment?.stop();
  }, 60_000);

  const get = (path: string, token: string) => fetch(deployment.fhir + path, { headers: { Authorization: `Bearer ${token}` } });

  /** What a few people do in a morning, for the screenshot. */
  async function morning(patients: string[]) {
    const people = ['dr-rivera', 'nurse-okafor', 'registrar-lee', 'billing-novak', 'dr-chen'].map((name) => deployment.token(name));
    for (const id of patients) {
      for (const [i, token] of people.entries()) {
        for (const path of [`/Patient/${id}`, `/Observation?patient=${id}&_count=5`, `/Encounter?patient=${id}`].slice(0, 1 + (i % 3))) await get(path, token);
      }
    }
  }

  async function signIn(person: string) {
    await page.getByRole('button', { name: 'Continue in browser' }).click();
    await page.getByRole('button', { name: person }).click();
  }

  /** Asks until the trail has it: events are stored within a second or so. */
  async function search(query: string, rows: number) {
    await expect.poll(async () => {
      await page.getByRole('textbox', { name: 'Query' }).fill(query);
      await page.getByRole('button', { name: 'Search' }).click();
      await page.waitForLoadState('networkidle');
      return page.locator('[data-row]').count();
    }, { timeout: 15_000, interval: 300 }).toBeGreaterThanOrEqual(rows);
  }

  test('signs in through the organisation’s page', async () => {
    await page.goto(deployment.dashboard);
    await signIn('Carmen Díaz');
    await page.getByRole('textbox', { name: 'Query' }).waitFor();
    expect(new URL(page.url()).search).toBe(''); // the code is not left in the address bar
    await page.getByText('Carmen Díaz').waitFor();
    await page.getByText('Server: ready').waitFor();
    expect(await page.evaluate(() => document.cookie)).toBe(''); // out of reach of scripts
  });

  test('shows who read a chart, and who was refused', async () => {
    await search(`request_id:${readId}`, 1);
    const read = page.locator('[data-row="0"]');
    expect(await read.innerText()).toMatch(/Dr\. Ana Rivera[\s\S]*read[\s\S]*allowed[\s\S]*success/);
    expect(await read.innerText()).toMatch(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\t/);

    await search(`request_id:${refusedId}`, 1);
    expect(await page.locator('[data-row="0"]').innerText()).toMatch(/Dr\. Wei Chen[\s\S]*denied[\s\S]*refused/);

    await search(`patient:${patient}`, 2);
    await search('outcome:refused', 1);
  });

  test('explains in the inspector why it was allowed', async () => {
    await search(`request_id:${readId}`, 1);
    await page.locator('[data-row="0"]').focus();
    await page.keyboard.press('Enter');
    const why = page.getByRole('region', { name: 'Why allowed' });
    await why.waitFor();
    expect(await why.innerText()).toMatch(/Rule\s+\S+[\s\S]*View\s+\S+[\s\S]*Policy version\s+\d+/);
    const log = await page.getByRole('region', { name: 'Place in the log' }).innerText();
    expect(log).toMatch(/Stream\s+[0-9a-f]{32}/);
    expect(log).toMatch(/Leaf hash\s+[0-9a-f]{64}/);
    await page.keyboard.press('Escape');
    await page.getByRole('complementary', { name: 'Event' }).waitFor({ state: 'detached' });
  });

  test('moves by keyboard, and says what it cannot understand', async () => {
    await search(`patient:${patient}`, 2);
    await page.locator('[data-row="0"]').focus();
    const at = () => page.evaluate(() => document.activeElement?.getAttribute('data-row'));
    for (const [key, row] of [['j', '1'], ['k', '0'], ['k', '0'], ['ArrowDown', '1'], ['Home', '0']] as const) {
      await page.keyboard.press(key);
      expect(await at()).toBe(row);
    }
    await page.keyboard.press('/');
    await page.keyboard.press('Control+a');
    await page.keyboard.type('nobody:x');
    await page.getByText('There is no field nobody').waitFor();
    expect(await page.getByRole('button', { name: 'Search' }).isDisabled()).toBe(true);
  });

  test('says when nothing matches, and shows the trail again', async () => {
    await page.getByRole('textbox', { name: 'Query' }).fill('request_id:there-is-no-such-request');
    await page.keyboard.press('Enter');
    await page.getByText('No event matches.').waitFor();
    await page.getByRole('button', { name: 'Show all events' }).click();
    await page.locator('[data-row="0"]').waitFor();
  });

  test('loads older events', async () => {
    await search('', 2);
    const before = await page.locator('[data-row]').count();
    const older = page.getByRole('button', { name: 'Load older events' });
    if (before === 100) {
      await older.click();
      await expect.poll(() => page.locator('[data-row]').count()).toBeGreaterThan(100);
    } else expect(await older.count()).toBe(0);
  });

  test.runIf(screenshot)('has its picture taken', async () => {
    await search('type:rest', 30);
    await page.locator('[data-row]').filter({ hasText: 'Dr. Ana Rivera' }).first().click();
    await page.getByRole('region', { name: 'Why allowed' }).waitFor();
    await page.screenshot({ path: resolve(import.meta.dirname, '../../screenshot.png') });
  });

  test('stays signed in over a reload, and dark is dark', async () => {
    await page.reload();
    await page.getByText('Carmen Díaz').waitFor();
    await page.getByRole('button', { name: 'Dark' }).click();
    expect(await page.evaluate(() => document.documentElement.getAttribute('data-mantine-color-scheme'))).toBe('dark');
  });

  test('signs out', async () => {
    await page.getByRole('button', { name: 'Sign out' }).click();
    await page.getByRole('button', { name: 'Continue in browser' }).waitFor();
    expect(await page.locator('[data-row]').count()).toBe(0);
  });

  test('caused no console error and no CSP violation', () => {
    expect(faults).toEqual([]);
  });

  // What follows makes the browser itself log failed requests.

  test('tells who may not read the trail', async () => {
    await signIn('Dr. Ana Rivera');
    await page.getByText('Dr. Ana Rivera may not read the audit trail.').waitFor();
    expect(await page.locator('[data-row]').count()).toBe(0);
    await page.getByRole('button', { name: 'Sign out' }).click();
  });

  test('tells of a refusal at the sign-in page', async () => {
    await signIn('Refuse access');
    await page.getByText('Access was declined at the sign-in page.').waitFor();
  });

  test('keeps what was read when the server goes away', async () => {
    await signIn('Carmen Díaz');
    await page.locator('[data-row="0"]').waitFor();
    const rows = await page.locator('[data-row]').count();
    await deployment.stopServer();
    await page.getByRole('button', { name: 'Search' }).click();
    const alert = page.getByRole('alert').filter({ hasText: 'Offline' });
    await alert.getByText('What is below was read before.').waitFor();
    expect(await page.locator('[data-row]').count()).toBe(rows);
    await page.getByRole('button', { name: 'Sign out' }).click(); // works without the server
    await page.getByRole('button', { name: 'Continue in browser' }).click();
    await page.getByText('The sign-in service does not answer.').waitFor();
    expect(faults.filter((f) => f.startsWith('CSP'))).toEqual([]);
  });
});
