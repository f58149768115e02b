(function(){
// news every three seconds, without touching what a person types
const EVERY=3000,answer=document.getElementById('answer'),form=document.querySelector('form');
let waiting=null,wasLiving=!!form;
async function look(){
  if(document.hidden)return;
  let text;
  try{const reply=await fetch(location.pathname+'?news');if(!reply.ok)return;text=await reply.text()}catch(error){return}
  const news=new DOMParser().parseFromString(text,'text/html');
  for(const id of ['state','events'])document.getElementById(id).replaceChildren(...news.getElementById(id).childNodes);
  window.drawFigures(JSON.parse(news.getElementById('figures').textContent));
  for(const label of news.querySelectorAll('input[name]')){
    const mine=form&&form.elements[label.name];if(mine)mine.placeholder=label.placeholder}
  if(wasLiving&&!news.querySelector('form')){wasLiving=false;
    form.replaceWith('The training has ended: there is nothing to steer.')}
  const row=waiting&&document.querySelector('[data-command="'+waiting+'"]');
  if(row){answer.textContent=row.querySelector('.warn')?'Refused: '+row.querySelector('.why').textContent:'Done, at step '+row.cells[0].textContent+'.';waiting=null}
}
if(form)form.addEventListener('submit',async event=>{
  event.preventDefault();
  const action=event.submitter.value,values={};
  if(action==='stop'&&!confirm('End this training?'))return;
  if(action==='nudge')for(const input of form.querySelectorAll('input[name]')){
    const typed=input.value.trim();if(typed==='')continue;
    if(!isFinite(Number(typed))){answer.textContent=input.name+' must be a number, got '+typed;return}
    values[input.name]=Number(typed)}
  const why=form.querySelector('[data-why]').value;
  try{
    const reply=await fetch(location.pathname,{method:'POST',headers:{'Content-Type':'application/json'},
      body:JSON.stringify({action,values,why})});
    const content=await reply.json();
    if(!reply.ok){answer.textContent='Refused: '+content.reason;return}
    waiting=content.id;answer.textContent='Left for the next check …';form.reset();
  }catch(error){answer.textContent='The dashboard does not answer.'}
});
setInterval(look,EVERY);
})();
