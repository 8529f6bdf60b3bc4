"""In one process: control plane conversation -> tunnel shell -> core, timed by stage."""
import asyncio, time, sys, gc, resource, os, json
from pathlib import Path
from lab.scale import world, services_file
from controlplane.sources.files import FileSource
from controlplane.store import Store
from controlplane.objects import Mesh
from controlplane.translate.tunnel import translate
from controlplane.push import Conversation
from mesh.delta import Subscriber, ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.gen.xds_pb2 import Node
import pickle
n=int(sys.argv[1]); d=Path("tmp-scale")
def rss(): return int(open("/proc/self/statm").read().split()[1])*4096/2**20
if sys.argv[2]=="make":
    world(n,n//10,d)
    st=Store(Mesh()); s=FileSource(d,st.judge); st.update(s.read())
    r=translate(st.world)
    c=Conversation(r)
    sub=Subscriber(Node(),(AUTHORIZATION_TYPE,ADDRESS_TYPE))
    out=[]
    t=time.perf_counter(); ser=0
    pend=sub.start()
    while pend:
        req=pend.pop(0)
        for resp in c.receive(req):
            out.append(resp.SerializeToString())
            b=sub.receive(resp); pend.append(sub.settle(b))
    print("conversation, both roles", time.perf_counter()-t, len(out), sum(map(len,out)))
    pickle.dump(out, open("tmp-scale/out.pickle","wb"))
else:
    from ztunnel.dataplane import open_core
    from mesh.gen.xds_pb2 import DeltaDiscoveryResponse
    out=pickle.load(open("tmp-scale/out.pickle","rb"))
    print("rss before", rss())
    dp=open_core(json.dumps({"access_log":"off"}).encode())
    print("rss core", rss())
    sub=Subscriber(Node(),(AUTHORIZATION_TYPE,ADDRESS_TYPE)); sub.start()
    tp=tr=ta=ts=0
    from ztunnel.lastgood import LastGood
    store=LastGood(Path("tmp-scale/state"))
    while out:
        t0=time.perf_counter(); resp=DeltaDiscoveryResponse.FromString(out.pop(0))
        t1=time.perf_counter(); b=sub.receive(resp); ups=[(n_,d_) for n_,_,d_ in b.upserts]
        t2=time.perf_counter(); ref=dp.core.apply(b.type_url, ups, b.removed)
        t3=time.perf_counter(); sub.settle(b,ref); 
        if len(sys.argv)<4: store.record(b,ref)
        t4=time.perf_counter()
        tp+=t1-t0; tr+=t2-t1; ta+=t3-t2; ts+=t4-t3
    del resp,b,ups
    gc.collect()
    print("parse",tp,"receive",tr,"apply",ta,"settle+record",ts, "rss", rss())
    big=[(f"x{i}",b"") for i in range(0)]
    one=None
    import ctypes; ctypes.CDLL(None).malloc_trim(0); print("rss trimmed", rss())
    t=time.perf_counter(); store.changed(); asyncio.run(store.flush()); print("flush", time.perf_counter()-t, rss())
    ctypes.CDLL(None).malloc_trim(0); print("rss trimmed", rss())
    dp.core.close()
