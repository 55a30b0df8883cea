// Asks the gateway as people's browsers do. usage: node eventsource.mjs BASE_URL
//
// 1. The page at /docs: a question through its chat box; the answer must come in pieces and end once.
// 2. `EventSource` in the page, bare: ids without a gap, one terminal event, and it is `done`.
// 3. The `eventsource` package, which shares no code with a browser: the same.
// 4. `eventsource-parser` over the bytes of POST /chat/sse?format=json: the chunks add up to the answer.
//
// Prints one line of JSON and exits 0 if all of it holds, 1 if not. Any gateway will do whose agent answers with more
// than a few tokens: the built-in demo, or a scripted upstream.
import { createParser } from 'eventsource-parser';
import { EventSource } from 'eventsource';
import { randomUUID } from 'node:crypto';
import { chromium } from 'playwright-core';

const base = process.argv[2]?.replace(/\/+$/, '');
if (!base) {
  console.error('usage: node eventsource.mjs BASE_URL');
  process.exit(2);
}
const PATIENCE = 30_000;
const message = 'Say a few words, one after the other.';
const report = { ok: false };

function check(holds, what) {
  if (!holds) throw new Error(what);
}

/** Waits for `promise`, but not for ever. */
function soon(promise, what) {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`${what}: not within ${PATIENCE} ms`)), PATIENCE); });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** What must hold of every stream: `events` are `{ name, id, data }` in the order of their arrival. */
function checkStream(events, who) {
  const terminals = events.filter(({ name }) => name === 'done' || name === 'error');
  check(terminals.length === 1, `${who}: ${terminals.length} terminal events`);
  check(events.at(-1).name === 'done', `${who}: the last event is ${events.at(-1).name}: ${events.at(-1).data}`);
  check(events[0].name === 'start', `${who}: the first event is ${events[0].name}`);
  const run = JSON.parse(events[0].data).run_id;
  events.forEach(({ id }, seq) => check(id === `${run}:${seq}`, `${who}: event ${seq} has the id ${id}`));
  const done = JSON.parse(events.at(-1).data);
  check(done.is_final === true, `${who}: done is not final`);
  const tokens = events.filter(({ name }) => name === 'token');
  check(tokens.length > 3, `${who}: only ${tokens.length} tokens`);
  return { done, tokens };
}

/** Follows a fresh run with an `EventSource`, whoever made it; also runs inside the page, so it uses nothing from here. */
function follow({ url, Source, quiet }) {
  const Made = Source ?? globalThis.EventSource;
  return new Promise((resolve, reject) => {
    const events = [];
    const source = new Made(url);
    const finish = () => { source.close(); setTimeout(() => resolve(events), quiet); };
    for (const name of ['start', 'token', 'reasoning', 'tool_call', 'tool_result', 'artifact', 'done', 'error', 'message']) {
      source.addEventListener(name, event => {
        if (name === 'error' && typeof event.data !== 'string') {
          if (source.readyState === 2) reject(new Error(`refused: ${event.code ?? ''} ${event.message ?? ''}`));
          return;
        }
        events.push({ name, id: event.lastEventId, data: event.data });
        if (name === 'done' || name === 'error') finish();
      });
    }
  });
}

function sseUrl(root) {
  return `${root}/chat/sse?${new URLSearchParams({ message, key: randomUUID() })}`;
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: [
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--no-first-run',
  ],
});
try {
  const page = await browser.newPage();
  const complaints = [];
  page.on('pageerror', error => complaints.push(String(error)));
  page.on('request', request => { if (!request.url().startsWith(base)) complaints.push(`asked ${request.url()}`); });

  // The page's own stream is counted from outside: how often the page was told of an end.
  await page.addInitScript(() => {
    window.seen = { terminals: [], sources: 0 };
    window.EventSource = class extends EventSource {
      constructor(...args) {
        super(...args);
        window.seen.sources += 1;
        for (const name of ['done', 'error']) {
          this.addEventListener(name, event => { if (typeof event.data === 'string') window.seen.terminals.push(name); });
        }
      }
    };
  });
  const answer = await page.goto(`${base}/docs`);
  check(answer.ok(), `/docs answers ${answer.status()}`);

  const operations = page.locator('#reference details[id^="op-"]');
  await operations.first().waitFor({ state: 'attached', timeout: PATIENCE });
  report.operations = await operations.count();

  // How the answer looked at every change of the page.
  await page.evaluate(() => {
    window.seen.lengths = [];
    new MutationObserver(() => {
      const length = document.querySelector('.turn.theirs .text')?.textContent.length ?? 0;
      if (length !== (window.seen.lengths.at(-1) ?? 0)) window.seen.lengths.push(length);
    }).observe(document.querySelector('#turns'), { childList: true, subtree: true, characterData: true });
  });
  await page.fill('#message', message);
  await page.click('#send');
  await page.locator('.turn.theirs[data-state="done"], .turn.theirs[data-state="error"]').waitFor({ timeout: PATIENCE });
  await page.waitForTimeout(500);
  const turn = page.locator('.turn.theirs');
  const state = await turn.getAttribute('data-state');
  const note = await turn.locator('.note').textContent();
  check(state === 'done', `the page's answer is ${state}: ${note}`);
  const seen = await page.evaluate(() => window.seen);
  check(seen.lengths.length > 3, `the answer came in ${seen.lengths.length} pieces`);
  check(seen.lengths.every((length, i) => i === 0 || length > seen.lengths[i - 1]), `the answer shrank: ${seen.lengths}`);
  check(seen.terminals.length === 1 && seen.terminals[0] === 'done', `terminal events: ${seen.terminals}`);
  check(seen.sources === 1, `${seen.sources} sources for one question`);
  report.page = { updates: seen.lengths.length, characters: seen.lengths.at(-1), note };

  // The session stays with the page.
  const session = await page.locator('#session').textContent();
  await page.fill('#message', message);
  await page.click('#send');
  await page.locator('.turn.theirs >> nth=1').and(page.locator('[data-state="done"]')).waitFor({ timeout: PATIENCE });
  check(await page.locator('#session').textContent() === session, 'the second turn has another session');

  const inPage = await soon(page.evaluate(follow, { url: sseUrl(''), quiet: 500 }), 'EventSource in the page');
  report.browser = { tokens: checkStream(inPage, 'EventSource in the page').tokens.length };
  check(complaints.length === 0, `the page: ${complaints.join('; ')}`);

  const outside = await soon(follow({ url: sseUrl(base), Source: EventSource, quiet: 500 }), 'the eventsource package');
  report.package = { tokens: checkStream(outside, 'the eventsource package').tokens.length };

  const response = await fetch(`${base}/chat/sse?format=json`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify({ message }),
    signal: AbortSignal.timeout(PATIENCE),
  });
  check(response.status === 200, `POST /chat/sse answers ${response.status}`);
  check(response.headers.get('content-type') === 'text/event-stream', `its type is ${response.headers.get('content-type')}`);
  const parsed = [];
  const parser = createParser({
    onEvent: ({ event, id, data }) => parsed.push({ name: event, id, data }),
    onError: error => { throw error; },
  });
  const utf8 = new TextDecoder('utf-8', { fatal: true });
  for await (const bytes of response.body) parser.feed(utf8.decode(bytes, { stream: true }));
  const { done, tokens } = checkStream(parsed, 'eventsource-parser');
  const text = parsed.map(({ data }) => JSON.parse(data).content).join('');
  check(text === done.response.content, `the chunks add up to ${JSON.stringify(text)}, the answer is ${JSON.stringify(done.response.content)}`);
  report.parser = { tokens: tokens.length };
  report.ok = true;
} catch (error) {
  report.error = String(error?.message ?? error).split('\n')[0];
} finally {
  await browser.close();
}
console.log(JSON.stringify(report));
process.exit(report.ok ? 0 : 1);
