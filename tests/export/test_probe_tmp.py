import pytest, onnx, collections, torch, numpy as np, onnxruntime, time
from cifar_deploy import architectures
@pytest.mark.parametrize("name", architectures.NETWORKS)
@pytest.mark.parametrize("precision", ["fp32","fp16"])
def test_p(name,precision,shelf,images):
    t=time.time(); e=shelf.exported(name,precision); t=time.time()-t
    m=onnx.load(e.path)
    print(name,precision,f"{t:.1f}s",e.path.stat().st_size,repr(e.printed),e.warned)
    print(collections.Counter(n.op_type for n in m.graph.node))
    with torch.inference_mode(): ref=shelf.trained(name).graph()(torch.from_numpy(images)).numpy()
    o=onnxruntime.SessionOptions(); o.log_severity_level=3
    s=onnxruntime.InferenceSession(e.path,o,providers=["CPUExecutionProvider"])
    got=s.run(None,{"images":images})[0]
    print("std",ref.std(0).mean(), "range",np.ptp(ref), "diff",np.abs(ref-got).max(), "rel", np.abs(ref-got).max()/ref.std(0).mean(), "top1",(ref.argmax(1)==got.argmax(1)).mean())
