import pyppmd,sys,time
for f in ("en_prose","zh_classical"):
    b=open(f"/tmp/w/real/shards/train/{f}.bin","rb").read()
    for o in (6,8):
        t=time.time(); c=pyppmd.compress(b,max_order=o,mem_size=512<<20); t1=time.time()-t
        print(f,o,len(b),len(c),t1,flush=True)
