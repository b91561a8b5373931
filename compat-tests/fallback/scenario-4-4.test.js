// The scenario with pusher-js 4.4 over each fallback transport alone, in a page of another origin, so that every request needs a preflight. Each
// version has a browser of its own: Chromium holds back the requests of pages in the background.

import { scenarioInPage } from '../support/in-page.js';

for (const transport of ['xhr_streaming', 'xhr_polling']) scenarioInPage('4.4', { transports: [transport] });
