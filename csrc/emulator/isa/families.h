// The families of instructions: each function lowers the current instruction, whose first part is one
// of its family's (table.cpp says which).
#pragma once

#include "csrc/emulator/lower/lowering.h"

namespace fa4::emulator {

// integer.cpp
void lower_add(Lowering& l);    // add, sub: integers here, floats in floating.cpp
void lower_carry(Lowering& l);  // addc, subc and the .cc forms
void lower_mul(Lowering& l);
void lower_mad(Lowering& l);
void lower_division(Lowering& l);  // div, rem
void lower_minmax(Lowering& l);
void lower_negation(Lowering& l);  // neg, abs
void lower_logic(Lowering& l);     // and or xor not cnot
void lower_shift(Lowering& l);     // shl shr shf
void lower_bits(Lowering& l);      // bfe bfi bfind popc clz brev prmt lop3 sad szext bmsk dp4a

// predicate.cpp
void lower_setp(Lowering& l);
void lower_selp(Lowering& l);
void lower_pred_logic(Lowering& l);

// floating.cpp
void lower_float_arithmetic(Lowering& l);  // add sub mul fma min max neg abs of floats
void lower_fma(Lowering& l);
void lower_float_division(Lowering& l);
void lower_approx(Lowering& l);  // ex2 lg2 rcp rsqrt sqrt sin cos tanh
void lower_copysign(Lowering& l);

// convert.cpp
void lower_mov(Lowering& l);
void lower_cvt(Lowering& l);
void lower_cvta(Lowering& l);  // cvta, isspacep, mapa, getctarank

// control.cpp
void lower_branch(Lowering& l);
void lower_exit(Lowering& l);
void lower_call(Lowering& l);
void lower_trap(Lowering& l);
void lower_nothing(Lowering& l);  // hints, and fences: ordering is not part of values
void lower_createpolicy(Lowering& l);
void lower_clock(Lowering& l);  // mov from a register that changes

// memory.cpp
void lower_load(Lowering& l);
void lower_store(Lowering& l);
void lower_atomic(Lowering& l);

// warp_ops.cpp
void lower_shfl(Lowering& l);
void lower_vote(Lowering& l);
void lower_redux(Lowering& l);
void lower_elect(Lowering& l);
void lower_match(Lowering& l);
void lower_activemask(Lowering& l);

// matrix.cpp
void lower_ldmatrix(Lowering& l);
void lower_stmatrix(Lowering& l);
void lower_movmatrix(Lowering& l);
void lower_mma(Lowering& l);

// barrier.cpp
void lower_barrier(Lowering& l);  // bar, barrier, barrier.cluster, bar.warp
void lower_setmaxnreg(Lowering& l);

// mbarrier_ops.cpp
void lower_mbarrier(Lowering& l);

// copy.cpp
void lower_cp(Lowering& l);           // cp.async, cp.async.bulk and its tensor forms, cp.reduce
void lower_store_async(Lowering& l);  // st.async, red.async
void lower_cluster_launch(Lowering& l);

// tcgen05.cpp
void lower_tcgen05(Lowering& l);

// wgmma.cpp
void lower_wgmma(Lowering& l);

}  // namespace fa4::emulator
