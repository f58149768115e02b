// An open page asks for its study every few seconds, and draws all its figures again with each answer, changed or not.
// Here it asks for nothing while nobody sees it, draws nothing that it has drawn already, and spends at most a hundredth
// of the time on drawing: a study may be training on the same machine. It never rests for more than a minute and a half,
// and of a study of fewer than 500 trials not for longer than until the next time it asks (ten seconds).
(function () {
  'use strict';
  const PART = 100, LONGEST = 90000, SHORT = 9000, MANY = 500;  // of the time; milliseconds twice; trials
  const plain = window.fetch;
  const marks = new Map();  // address of a study -> the server's mark of what was answered last
  let since = 0, busy = 0;  // milliseconds: when the last answer came, and how long the page has worked since
  try {
    new PerformanceObserver(list => { for (const task of list.getEntries()) busy += task.duration; })
      .observe({ type: 'longtask' });
  } catch (error) {
    // a browser that does not tell: its polls are not slowed down
  }
  function rests(trials) {
    if (navigator.userActivation && navigator.userActivation.isActive) return false;
    return performance.now() - since < Math.min(PART * busy, trials < MANY ? SHORT : LONGEST);
  }
  function nothing() {
    return new DOMException('nothing new to draw', 'AbortError');  // the page says so in its console, and goes on
  }
  window.fetch = async function (asked, how) {
    const found = typeof asked === 'string' && !how && asked.match(/^(\/api\/studies\/\d+)\?after=(\d+)$/);
    if (!found) {
      const answer = await plain(asked, how);
      if (how && how.method && how.method !== 'GET') {
        since = -LONGEST;  // the page wants to see what it changed
        window.dispatchEvent(new Event('hp-changed'));
      }
      return answer;
    }
    const mark = marks.get(found[1]);
    if (mark && (document.hidden || rests(+found[2]))) throw nothing();
    const answer = await plain(asked, mark ? { headers: { 'If-None-Match': mark } } : undefined);
    if (answer.status === 304) throw nothing();
    if (answer.ok && answer.headers.get('ETag')) {
      marks.clear();  // the page asks anew for a study that it comes back to
      marks.set(found[1], answer.headers.get('ETag'));
      since = mark ? performance.now() : -LONGEST;  // the first time the page also starts its libraries
      busy = 0;
    }
    return answer;
  };
})();
