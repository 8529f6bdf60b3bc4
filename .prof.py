import time, sys, cProfile, pstats, gc, resource
from pathlib import Path
from lab.scale import world
from controlplane.sources.files import FileSource
from controlplane.store import Store
from controlplane.objects import Mesh
d=Path("tmp-scale"); d.mkdir(exist_ok=True)
n=int(sys.argv[1]); world(n,n//10,d)
if "nogc" in sys.argv: gc.disable()
st=Store(Mesh())
s=FileSource(d, getattr(st,"judge",lambda _:None))
def timed(name,f):
    t=time.perf_counter(); r=f(); print(name, round(time.perf_counter()-t,3)); return r
p=cProfile.Profile()
if "p" in sys.argv: p.enable()
c=timed("parse",s.read)
timed("store",lambda: st.update(c))
p.disable()
if "p" in sys.argv: pstats.Stats(p).sort_stats("tottime").print_stats(22)
from controlplane.translate.tunnel import translate
r=timed("translate", lambda: translate(st.world))
f=d/"scale-services-000000.yaml"; 
def change(n):
    f.write_text(f.read_text().replace("100.64.0.1\n", f"100.127.0.{n}\n",1) if n==1 else f.read_text().replace(f"100.127.0.{n-1}\n", f"100.127.0.{n}\n",1))
gc.freeze()
for i in range(1,4):
    if i==3 and "pc" in sys.argv: p=cProfile.Profile(); p.enable()
    change(i)
    c=timed("change: parse",s.read)
    timed("change: store",lambda: st.update(c))
    r=timed("change: translate", lambda: translate(st.world, r))
print("rss MiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024)

p.disable()
if "pc" in sys.argv: pstats.Stats(p).sort_stats("tottime").print_stats(22)
