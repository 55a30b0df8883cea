// Follows one run with four `EventSource`s of a page, whatever dies meanwhile.
// usage: node follow.mjs '{"base": "http://…", "run": "RUN_ID", "bell": "http://…"}'
//
// When all four have read two tokens, `bell` is asked once: who listens there can do its worst. Then each is left alone until
// it has been told an end. Prints what each read, as one line of JSON: {"sources": [{"ids": […], "names": […], "last": "…"}]}.
import { chromium } from 'playwright-core';

const { base, run, bell } = JSON.parse(process.argv[2]);
const PATIENCE = 60_000;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: [
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--no-first-run',
  ],
});
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE);
  const answer = await page.goto(`${base}/docs`);
  if (!answer.ok()) throw new Error(`/docs answers ${answer.status()}`);
  await page.evaluate(url => {
    window.sources = [0, 1, 2, 3].map(() => {
      const seen = { ids: [], names: [], last: null, ended: false, opened: 0 };
      const source = new EventSource(url);
      source.addEventListener('open', () => { seen.opened += 1; });
      for (const name of ['start', 'token', 'done', 'error']) {
        source.addEventListener(name, event => {
          if (typeof event.data !== 'string') {
            if (source.readyState === EventSource.CLOSED) seen.ended = seen.names.push('refused') > 0;
            return;
          }
          seen.ids.push(event.lastEventId);
          seen.names.push(name);
          seen.last = event.data;
          if (name === 'done' || name === 'error') {
            source.close();
            seen.ended = true;
          }
        });
      }
      return seen;
    });
  }, `${base}/runs/${run}/events`);
  await page.waitForFunction(() => window.sources.every(seen => seen.names.filter(name => name === 'token').length >= 2));
  await fetch(bell);
  await page.waitForFunction(() => window.sources.every(seen => seen.ended));
  console.log(JSON.stringify({ sources: await page.evaluate(() => window.sources) }));
} finally {
  await browser.close();
}
