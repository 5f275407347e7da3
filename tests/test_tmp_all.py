import pytest
from pathlib import Path
from tiny_autoencoders import kl_of
from tiny_runs import *
CASES={"local":{}, "centralised":{}, "fedddpm":{"aux_samples":6,"server_steps":1}, "feddiffuse":{}, "feddiffuse-s":{"feddiffuse_method":"usplit"}, "dfd":{"screening":True,"generator_steps":3,"membership_inference":True,"evaluate":True,"sampler":"auto"},"dfd-ula":{"sampler":"ula"},"krum":{"num_clients":4}, "pooled":{"augment":"flip,rotate90","evaluate":True,"membership_inference":True},"fedavg":{"augment":"shift"}}
@pytest.mark.parametrize("name",CASES)
def test_x(name,tmp_path):
    kl_of().save_pretrained(tmp_path/"vae")
    s=tiny_settings(tmp_path,strategy=name.split("-")[0],autoencoder=str(tmp_path/"vae"),**CASES[name])
    f=run_tiny(s,report=False)
    print(f.results.read_text())
    assert sum(1 for _ in f.synthetic.rglob("*.png"))>=30
