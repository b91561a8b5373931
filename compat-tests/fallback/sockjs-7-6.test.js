// The scenario with pusher-js 7.6 over each transport of SockJS, in a page of another origin.

import { scenarioOverSockJs } from './sockjs-scenario.js';

scenarioOverSockJs('7.6', ['iframe-eventsource', 'iframe-htmlfile', 'iframe-xhr-polling', 'jsonp-polling']);
