// SM100 backward of a CTA pair whose steps are serial, load role.
#pragma once

#include "csrc/sm100/bwd/block.cuh"
#include "csrc/sm100/bwd/pair_load.cuh"

namespace fa4::sm100 {

/// One thread of each CTA. Everything in the order in which products ask for it.
/// Waits: q_empty qt_empty dout_empty dq_sent.
/// Signals: q_full dout_full doutt_full qt_full stat_full.
template <BwdConfig kConfig>
FA4_D void role_serial_load(const BwdBlock<kConfig>& b) {
  BwdPairLoader<kConfig> loader{b};
  BwdStep step = BwdStep::first(b);
  loader.load_q(step, true);
  loader.load_stats(step, 0);
  loader.load_dout(step, true);
  loader.load_doutt(step);
  uint32_t parity = 0;
  bool first = true;
  for (int left = b.steps() - 1; left > 0; --left) {
    b.template wait<kBwdQEmpty>(0, parity);  // qt lies over it
    loader.load_qt(step, first);
    step.advance(b);
    b.template wait<kBwdQtEmpty>(0, parity);  // the statistics have been read, too
    loader.load_q(step, false);
    loader.load_stats(step, 0);
    b.template wait<kBwdDoutEmpty>(0, parity);  // what is sent of dS lies over it
    loader.load_dout(step, false);
    b.template wait<kBwdDqSent>(0, parity);  // dq on its way lies over it
    loader.load_doutt(step);
    parity ^= 1;
    first = false;
  }
  b.template wait<kBwdQEmpty>(0, parity);
  loader.load_qt(step, first);
}

}  // namespace fa4::sm100
