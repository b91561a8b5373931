// The scenario with pusher-js 4.4 over SockJS, in a page of another origin.

import { scenarioOverSockJs } from './sockjs-scenario.js';

scenarioOverSockJs('4.4', ['iframe-eventsource']);
