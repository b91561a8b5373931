// The clients of both protocols in a page of headless Chromium.

import { describe, test } from 'node:test';

import { connectionTo } from '../../support/in-node.js';
import { TEST_APP } from '../../support/raptor.js';
import { startHouse } from './bridge.js';
import { openAt } from './in-page.js';

/** Registers steps as tests in a page, one server and one page for all of them. `options`: as for `startBridge`; `file`: the one below `support/` that exports the steps as `steps`; `isCrossOrigin`: the page is not the server's. */
export function bridgeInPage(steps, file, { transport, isCrossOrigin = false, ...options }) {
  describe(`in Chromium over ${transport}, ${isCrossOrigin ? 'another' : 'the same'} origin`, { concurrency: 1 }, () => {
    let page;
    const errors = [];

    async function open() {
      const { server, application, network, holdMs, call } = await startHouse(options);
      const applicationUrl = application.url;
      const setting = { key: TEST_APP.key, version: '8.6', applicationUrl, connection: connectionTo(server) };
      const html = `<!doctype html>
        <meta charset="utf-8">
        <title>Both protocols, Faye over ${transport}</title>
        <script src="${network.url}/client.js"></script>
        <script src="/page/node_modules/pusher-js-8.6/dist/web/pusher-with-encryption.min.js"></script>
        <script type="module">
          import { createBridge } from '/page/bayeux/support/both-protocols.js';
          import { steps } from '/page/bayeux/support/${file}';
          import { createWorld as createBayeux } from '/page/bayeux/support/world.js';
          import { createWorld as createPusher } from '/page/support/world.js';

          const call = window.call;
          const bayeux = (transport, url) => createBayeux({ Faye, url, transport, holdMs: ${holdMs}, call });
          window.world = createBridge({
            pusher: createPusher({ ...${JSON.stringify(setting)}, Pusher, call }),
            bayeux: bayeux('${transport}', '${network.url}'),
            beside: bayeux('websocket', '${server.url}'),
            applicationUrl: '${applicationUrl}',
            call,
          });
          window.runStep = async (title) => {
            try {
              await steps.find((step) => step.title === title).run(world);
            } finally {
              world.close();
            }
          };
        </script>`;
      const opened = await openAt(`http://${isCrossOrigin ? 'localhost' : '127.0.0.1'}:${network.port}/page/`, html, call);
      opened.on('pageerror', (error) => errors.push(error));
      return opened;
    }

    for (const { title } of steps) {
      test(title, { timeout: 60_000 }, async () => {
        page ??= await open();
        await page.evaluate((wanted) => window.runStep(wanted), title);
        if (errors.length > 0) throw errors.splice(0)[0]; // one that nobody in the page caught
      });
    }
  });
}
