(function(){
// links to files beside this one lead nowhere where the dashboard serves it under a number
if(location.pathname.startsWith('/hp/'))document.querySelectorAll('a.file').forEach(a=>a.replaceWith(a.textContent));
// a page is opened long after it was written: ages, days left and the status follow the reader's clock
const days=text=>Math.floor((Date.now()-Date.parse(text))/864e5),span=n=>n===1?'1 day':n+' days';
document.querySelectorAll('[data-since]').forEach(e=>{const n=days(e.dataset.since);e.textContent=n>0?span(n)+' ago':'today'});
document.querySelectorAll('[data-until]').forEach(e=>{const left=(Date.parse(e.dataset.until)-Date.now())/864e5,n=Math.floor(Math.abs(left));
  e.textContent=left>0?'in '+span(n):span(n)+' over';e.className=left>0?'dim':'warn'});
document.querySelectorAll('[data-due]').forEach(e=>{if(days(e.dataset.due)<0)return;
  e.textContent='due';e.classList.replace('good','warn');
  e.title='due since '+e.dataset.due.slice(0,10)+'; what happened since this page was written: lightning-hp status'});
const figures=JSON.parse(document.getElementById('figures').textContent);
const css=n=>getComputedStyle(document.documentElement).getPropertyValue(n).trim();
function dressed(layout){
  const l=JSON.parse(JSON.stringify(layout));const ink=css('--ink2'),grid=css('--grid');
  l.font=Object.assign({},l.font,{color:ink});
  l.hoverlabel=Object.assign({},l.hoverlabel,{bgcolor:css('--card'),bordercolor:css('--line')});
  l.hoverlabel.font=Object.assign({},l.hoverlabel.font,{color:css('--ink')});
  for(const k in l)if(/^[xy]axis/.test(k))Object.assign(l[k],{gridcolor:grid,linecolor:grid});
  return l;
}
const config={displaylogo:false,responsive:true,displayModeBar:false,scrollZoom:false};
function shaded(trace){ // landscapes: from the page's background to its accent
  if(trace.type!=='contour')return trace;
  const dark=matchMedia('(prefers-color-scheme:dark)').matches;
  const scale=dark?[[0,'#20252d'],[.5,'#3c5b9e'],[1,'#9dbcff']]:[[0,'#eef2fa'],[.5,'#94b0ea'],[1,'#2c5bc7']];
  return Object.assign({},trace,{colorscale:scale});
}
function draw(id){const f=figures[id];return Plotly.react(id,f.data.map(shaded),dressed(f.layout),config)}
// pages that ask for news give new figures of the same names
window.drawFigures=news=>{for(const id in news){figures[id]=news[id];if(document.getElementById(id).data)draw(id)}};
const seen=new IntersectionObserver(es=>es.forEach(e=>{if(e.isIntersecting){seen.unobserve(e.target);draw(e.target.id)}}),
  {rootMargin:'800px'});
for(const id in figures)seen.observe(document.getElementById(id));
matchMedia('(prefers-color-scheme:dark)').addEventListener('change',()=>{
  for(const id in figures)if(document.getElementById(id).data)draw(id)});
addEventListener('beforeprint',()=>{for(const id in figures)draw(id)});
})();
