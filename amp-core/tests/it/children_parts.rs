//! Tests that a derived `#[forward]` can call a layer within another layer, as in
//! `self.block.head`. The path of `head` then begins with the path of `block`, and the precision
//! regions of `block` and of `head` apply.

use amp_core::{
    Module, Result,
    nn::{Child, Context, Linear, LinearConfig, Visit, Visitor, visit_child},
    precision::{Precision, Region},
    tch::{Kind, Tensor},
};

use crate::{
    children::{ones, products},
    support::seeded,
};

#[derive(Module)]
#[forward(|x| inner(&outer(x)?))]
struct Block {
    #[layer(linear(4, 4))]
    inner: Linear,
    #[layer(linear(4, 4))]
    #[precision(fp32)]
    outer: Linear,
}

#[derive(Module)]
#[forward(|x| self.list[0].forward(&block(x)?, cx))]
struct Nested {
    #[layer(Block::builder().build()?)]
    block: Block,
    #[layer(repeat(2, |_| linear(4, 4)))]
    #[precision(fp32)]
    list: Vec<Linear>,
}

/// A struct that is not a module. A layer in its fields therefore has no path.
struct Pair<'m> {
    layer: &'m Linear,
}

struct Lists<'m> {
    layers: Vec<&'m Linear>,
}

#[derive(Module)]
#[forward(|x| {
    let mut x = self.block.inner.forward(x, cx)?;
    x = self.block.outer.forward(&x, cx)?;
    x = self.low.outer.forward(&x, cx)?;
    for block in &self.blocks {
        x = block.inner.forward(&block.outer.forward(&x, cx)?, cx)?;
    }
    x = self.blocks[1].outer.forward_with((&x,), cx)?;
    if let Some(block) = &self.maybe {
        x = block.outer.forward(&x, cx)?;
    }
    x = self.boxed.outer.forward(&x, cx)?;
    x = self.deep.block.outer.forward(&x, cx)?;
    x = self.deep.list[1].forward(&x, cx)?;
    x = self.all[1].block.inner.forward(&x, cx)?;
    let last = &self.deep;
    x = last.block.inner.forward(&x, cx)?;
    let pair = Pair { layer: &self.alone };
    // `pair` is not a module, so this call has no path and the probe reports nothing.
    x = pair.layer.forward(&x, cx)?;
    let lists = Lists { layers: vec![&self.alone] };
    lists.layers[0].forward(&x, cx)
})]
struct Net {
    #[layer(Block::builder().build()?)]
    block: Block,
    #[layer(Block::builder().build()?)]
    #[precision(bf16)]
    low: Block,
    #[layer(repeat(2, |_| Block::builder().build()?))]
    blocks: Vec<Block>,
    #[layer(optional(true, Block::builder().build()?))]
    maybe: Option<Block>,
    #[layer(Box::new(Block::builder().build()?))]
    boxed: Box<Block>,
    #[layer(Nested::builder().build()?)]
    #[precision(fp32)]
    deep: Nested,
    #[layer(repeat(2, |_| Nested::builder().build()?))]
    #[precision(fp32)]
    all: Vec<Nested>,
    #[layer(linear(4, 4))]
    alone: Linear,
}

#[test]
fn a_layer_of_a_layer_keeps_path_and_region() -> Result<()> {
    let _generator = seeded(0);
    let net = Net::builder().build()?;
    let found = products(Precision::Bf16Mixed, &net, |net, cx| net.forward(&ones(&[3, 4]), cx))?;
    let (low, high) = (Kind::BFloat16, Kind::Float);
    let expected = [
        ("block.inner", low),
        ("block.outer", high),
        ("low.outer", high),
        ("blocks.0.outer", high),
        ("blocks.0.inner", low),
        ("blocks.1.outer", high),
        ("blocks.1.inner", low),
        ("blocks.1.outer", high),
        ("maybe.outer", high),
        ("boxed.outer", high),
        ("deep.block.outer", high),
        ("deep.list.1", high),
        ("all.1.block.inner", high),
        ("deep.block.inner", high),
    ];
    let found: Vec<(&str, Kind)> = found.iter().map(|(path, kind)| (&**path, *kind)).collect();
    assert_eq!(found, expected);
    Ok(())
}

/// A module that reports its field `projection` under the name `proj`.
struct Renamed {
    projection: Linear,
}

impl Visit for Renamed {
    fn visit(&self, visitor: &mut dyn Visitor) {
        visit_child(visitor, "proj", Some(Region::Fp32), &self.projection);
    }
}

/// The last part of a layer's path is the name under which its module reports the layer in `visit`.
/// If a layer is called by another name, which `visit` does not report, its products have the path
/// of the module.
#[test]
fn a_field_with_another_name_is_left_out_of_the_path() -> Result<()> {
    let _generator = seeded(0);
    let renamed = Renamed { projection: Linear::new(LinearConfig::new(4, 4))? };
    let run = |name: &'static str| {
        let call = |module: &Renamed, cx: &Context| -> Result<Tensor> {
            let child = Child::new("renamed", None, module);
            child.part(name, |module| &module.projection).forward(&ones(&[3, 4]), cx)
        };
        products(Precision::Bf16Mixed, &renamed, call)
    };
    assert_eq!(run("proj")?, [("renamed.proj".to_owned(), Kind::Float)]);
    assert_eq!(run("projection")?.last().map(|(path, _)| &**path), Some("renamed"));
    Ok(())
}
