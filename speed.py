import time,sys
from tinygpt import GPT,GPTConfig,TrainConfig
from tinygpt.corpora import load_corpus
from tinygpt.tokenizer import train_tokenizer
from tinygpt.data import *
from tinygpt.train import Trainer
c=load_corpus("docs"); texts=[d.text for d in c.train]
for V,T,L,C,B in ((4096,128,4,256,16),(2048,128,4,256,16)):
    t=train_tokenizer("bpe",texts,V); ids=encode_documents(texts,t)
    tr=Trainer(GPT(GPTConfig(n_layer=L,n_head=4,n_embd=C,n_positions=T,vocab_size=V)),TrainConfig(steps=100,micro_batch=B),Windows(ids,T),None)
    for _ in range(3): tr.update()
    s=time.time(); 
    for _ in range(10): float(tr.update()[0])
    s=(time.time()-s)/10
    print(V,T,L,C,B,tr.model.n_parameters(),len(ids),f"{s*1000:.0f} ms",f"{B*T/s:.0f} tok/s")
