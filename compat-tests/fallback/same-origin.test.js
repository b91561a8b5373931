// The scenario with pusher-js 8.6 over each fallback transport, in a page of the same origin: no request needs a preflight.

import { scenarioInPage } from '../support/in-page.js';
import { scenarioOverSockJs } from './sockjs-scenario.js';

for (const transport of ['xhr_streaming', 'xhr_polling']) scenarioInPage('8.6', { transports: [transport], sameOrigin: true, as: `${transport}, same origin` });
scenarioOverSockJs('8.6', ['iframe-eventsource'], { sameOrigin: true });
