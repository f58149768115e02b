// A line on every page of the dashboard: where the study stands and how old its values are; it leads to the overview.
(function () {
  'use strict';
  const colours = { good: '#1a7f4b', warn: '#a96408', bad: '#c2382e', dim: '#5d656f' };
  const prefix = 'readOnly' in document.currentScript.dataset ? 'read-only · ' : '';
  const line = document.createElement('a');
  line.id = 'hp-banner';
  line.style.cssText = 'position:fixed;right:16px;bottom:14px;z-index:1250;max-width:min(680px,calc(100vw - 32px));' +
    'padding:6px 14px;border-radius:99px;color:#fff;text-decoration:none;font:500 13px/1.4 system-ui,sans-serif;' +
    'white-space:nowrap;overflow:hidden;text-overflow:ellipsis;box-shadow:0 1px 6px rgba(0,0,0,.3)';
  let shown = null;
  function say(text, tone, href) {
    line.textContent = prefix + text;
    line.href = href || '/hp/';
    line.title = href ? 'Answer' : 'All studies';
    line.style.background = colours[tone] || colours.dim;
    if (!line.isConnected) document.body.appendChild(line);
  }
  async function look() {
    if (document.hidden) return;
    const found = location.pathname.match(/^\/dashboard\/studies\/(\d+)/);
    shown = location.pathname;
    if (!found) return say('All studies at a glance', 'dim');
    try {
      const answer = await fetch('/hp/status/' + found[1]);
      if (!answer.ok) throw new Error(String(answer.status));
      const status = await answer.json();
      say(status.line, status.tone, location.pathname + location.search !== status.href && status.href);
    } catch (error) {
      say('All studies at a glance', 'dim');
    }
  }
  function scheme() {  // links in a note would keep the colour that is meant for white pages
    const [red, green, blue] = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number);
    const found = red + green + blue < 384 ? 'dark' : 'light';
    if (document.documentElement.style.colorScheme !== found) document.documentElement.style.colorScheme = found;
  }
  look();
  setInterval(look, 15000);
  window.addEventListener('hp-changed', look);
  setInterval(() => { scheme(); if (location.pathname !== shown) look(); }, 700);
})();
