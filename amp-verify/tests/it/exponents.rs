//! Tests of the histograms of exponents. They are compared with closed forms and with libtorch's
//! casts.

use amp_core::tch::{Device, Kind, Tensor};
use amp_verify::exponents::{CommonWindow, Format, Histogram, Losses, Window, WindowOptions, cast};
use rstest::rstest;

/// Returns the device in `AMP_DEVICE`, which `cargo amp test --device` sets, or the CPU.
fn torch_device() -> Device {
    let name = std::env::var("AMP_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    amp_core::hardware::parse_device(&name).expect("AMP_DEVICE names a device of this machine")
}

fn tensor(values: &[f64]) -> Tensor {
    Tensor::from_slice(values).to_kind(Kind::Float).to_device(torch_device())
}

#[test]
fn buckets_hold_each_octave() {
    let values = [1.0, 1.5, -1.999, 2.0, 0.75, 0.0, -0.0, 3e-39, f64::INFINITY, f64::NAN];
    let found = Histogram::of(&tensor(&values)).expect("a histogram");
    let counts: Vec<_> = found.buckets.iter().map(|(k, bucket)| (*k, bucket.count)).collect();
    // 3e-39 is a subnormal f32 number between 2^-128 and 2^-127.
    assert_eq!(counts, [(-128, 1), (-1, 1), (0, 3), (1, 1)]);
    assert_eq!((found.zeros, found.non_finite, found.nonzero()), (2, 2, 6));
    assert_eq!((found.buckets[&0].powers, found.buckets[&1].powers), (1, 1));
    assert_eq!(found.max_exponent(), Some(1));
}

#[test]
fn the_low_exponent_leaves_the_share_below() {
    let values: Vec<f64> = (0..100).map(|at| 2.0_f64.powi(-at)).collect();
    let found = Histogram::of(&tensor(&values)).expect("a histogram");
    for (share, expected) in [(0.0, -99), (0.01, -98), (0.10, -89), (1.0, 0)] {
        assert_eq!(found.low_exponent(share), Some(expected), "{share}");
    }
    assert_eq!(Histogram::of(&tensor(&[0.0])).expect("a histogram").low_exponent(0.1), None);
}

/// Returns the values at which the result of a cast to the format changes, and for each value the
/// numbers just below and just above it. These are the format's largest number, the limit above
/// which a cast overflows, the format's smallest number, and half of it, below which a cast gives
/// zero. Every second number is negative.
fn edges(format: Format) -> Vec<f64> {
    let largest = match format {
        Format::F16 => 65504.0,
        Format::Bf16 => 2.0_f64.powi(127) * (2.0 - 2.0_f64.powi(-7)),
        Format::E4M3 => 448.0,
        Format::E5M2 => 57344.0,
    };
    let halfway = match format {
        Format::F16 => 65520.0,
        Format::Bf16 => 2.0_f64.powi(127) * (2.0 - 2.0_f64.powi(-8)),
        Format::E4M3 => 464.0,
        Format::E5M2 => 61440.0,
    };
    let smallest = 2.0_f64.powi(format.min_subnormal_exponent());
    let close = |value: f64| [value * (1.0 - 2e-7), value, value * (1.0 + 2e-7)];
    let all = [close(largest), close(halfway), close(smallest), close(smallest / 2.0)].concat();
    let all: Vec<f64> = all.into_iter().chain([0.0, 1.0]).collect();
    all.iter().chain(&all).enumerate().map(|(at, v)| if at % 2 == 0 { *v } else { -v }).collect()
}

#[rstest]
#[case::f16(Format::F16)]
#[case::bf16(Format::Bf16)]
#[case::e4m3(Format::E4M3)]
#[case::e5m2(Format::E5M2)]
fn the_prediction_is_what_a_cast_does(#[case] format: Format) {
    let edges = tensor(&edges(format));
    let found = Histogram::of(&edges).expect("a histogram").predict(format, 0);
    assert_eq!(found, cast(&edges, format, 0).expect("a cast"), "{format:?}");
    assert!(found.overflow >= 2 && found.underflow >= 4, "{format:?}: {found:?}");
    // Checks that the predicted numbers of overflows and underflows are also correct for random
    // values of all magnitudes, at several loss scales.
    let _section = amp_core::random::seeded(1).expect("a seed");
    let spread = Tensor::randn([4096], (Kind::Float, Device::Cpu)) * 12.0;
    let sizes: Tensor = Tensor::randn([4096], (Kind::Float, Device::Cpu)) * spread.exp2();
    let sizes = sizes.to_device(torch_device());
    let histogram = Histogram::of(&sizes).expect("a histogram");
    for scale in [-20, -1, 0, 7, 16] {
        let seen = cast(&sizes, format, scale).expect("a cast");
        assert_eq!(histogram.predict(format, scale), seen, "{format:?} at 2^{scale}");
    }
}

#[test]
fn a_window_is_where_neither_end_is_lost() {
    // The values are between 2^-30 and 2^-3. In f16, a loss scale must raise the smallest value to
    // at least 2^-24. It must leave the largest value below 2^15, so that one bit of headroom is
    // left.
    let values: Vec<f64> = (3..=30).map(|at| 2.0_f64.powi(-at)).collect();
    let values = tensor(&values);
    let histogram = Histogram::of(&values).expect("a histogram");
    let options = WindowOptions { underflow_share: 0.0, headroom_bits: 1 };
    let window = histogram.window(Format::F16, options).expect("a window");
    assert_eq!(window, Window { low: 6, high: 17 });
    for scale in window.low..=window.high {
        assert_eq!(histogram.predict(Format::F16, scale), Losses::default(), "2^{scale}");
    }
    assert!(cast(&values, Format::F16, 4).expect("a cast").underflow > 0);
    assert!(cast(&values, Format::F16, 19).expect("a cast").overflow > 0);
    assert_eq!((window.margin_bits(16), window.margin_bits(6), window.margin_bits(18)), (1, 0, -1));
}

#[test]
fn an_empty_intersection_names_the_two_in_conflict() {
    let windows = [
        ("a", Window { low: 0, high: 20 }),
        ("b", Window { low: 12, high: 30 }),
        ("c", Window { low: -3, high: 9 }),
    ];
    let common = CommonWindow::of(windows).expect("a window");
    assert_eq!(common.window, Window { low: 12, high: 9 });
    assert_eq!(common.conflict(), Some(("b", "c")));
    let common = CommonWindow::of(windows.into_iter().take(2)).expect("a window");
    assert_eq!((common.window, common.conflict()), (Window { low: 12, high: 20 }, None));
}
