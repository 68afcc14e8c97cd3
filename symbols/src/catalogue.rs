//! The table itself. See [`catalogue!`](crate::catalogue).

/// Calls `$callback!` with the whole table of symbols.
///
/// `hooks` are the functions that the preload library defines, with the System V x86-64 signature that
/// its hook must have. Every integer or pointer argument is a `usize`, whatever its C++ type: it
/// occupies one register or one stack slot, and passing all of it on is exact for any narrower type.
/// The result is what `rax` holds. A `Span` is two words passed by value on the stack. C++ objects
/// that are returned by value (a `shared_ptr`) arrive as a hidden first pointer, here `result`.
///
/// `lookups` are what ttalloc calls itself, with the C++ meaning of the result, or, where it says
/// `at`, what it needs the address of and no more. `required` are those without which nothing can be
/// tracked.
///
/// A role may have several symbols in one era: a release uses whichever of them it defines. What each
/// role is for, and what is lost without it, stands in [`ROLES`](crate::ROLES).
#[macro_export]
macro_rules! catalogue {
    ($callback:ident) => {
        $callback! {
            hooks {
                // DeviceAddr allocate_buffer(Buffer*)
                allocate(allocator: usize, buffer: usize) = {
                    [A] "_ZN2tt8tt_metal9Allocator15allocate_bufferEPNS0_6BufferE";
                    [B C] "_ZN2tt8tt_metal13AllocatorImpl15allocate_bufferEPNS0_6BufferE";
                }
                // void deallocate_buffer(Buffer*)
                deallocate(allocator: usize, buffer: usize) = {
                    [A] "_ZN2tt8tt_metal9Allocator17deallocate_bufferEPNS0_6BufferE";
                    [B C] "_ZN2tt8tt_metal13AllocatorImpl17deallocate_bufferEPNS0_6BufferE";
                }
                // void deallocate_buffers(). From era B on class Allocator is a mere view, whose
                // function of the same name calls AllocatorImpl's.
                deallocate_all(allocator: usize) = {
                    [A] "_ZN2tt8tt_metal9Allocator18deallocate_buffersEv";
                    [B C] "_ZN2tt8tt_metal13AllocatorImpl18deallocate_buffersEv";
                }
                // void clear()
                clear(allocator: usize) = {
                    [A] "_ZN2tt8tt_metal9Allocator5clearEv";
                    [B C] "_ZN2tt8tt_metal13AllocatorImpl5clearEv";
                }
                // The destructor's variants: D0 frees the object too, D1 is the complete object's, D2
                // the base subobject's. Which one ends an allocator differs by release; in era A the
                // destructor isn't virtual, and so has no D0.
                allocator_end(allocator: usize) = {
                    [A] "_ZN2tt8tt_metal9AllocatorD1Ev";
                    [A] "_ZN2tt8tt_metal9AllocatorD2Ev";
                    [B C] "_ZN2tt8tt_metal13AllocatorImplD0Ev";
                    [B C] "_ZN2tt8tt_metal13AllocatorImplD1Ev";
                    [B C] "_ZN2tt8tt_metal13AllocatorImplD2Ev";
                }
                // shared_ptr<Buffer> create(IDevice*, size, page_size, BufferType,
                // BufferShardingArgs const&, optional<bool>, optional<SubDeviceId>). Before era C a
                // buffer's size, type and device have no exported accessor: they are read here.
                create(result: usize, device: usize, size: usize, page_size: usize,
                       buffer_type: usize, sharding: usize, bottom_up: usize,
                       sub_device: usize) = {
                    [A B] "_ZN2tt8tt_metal6Buffer6createEPNS0_7IDeviceEmmNS0_10BufferTypeERKNS0_18BufferShardingArgsESt8optionalIbES8_IN4ttsl10StrongTypeIhNS0_14SubDeviceIdTagEEEE";
                }
                // The overload with an address before the size: no allocator is asked.
                create_at_address(result: usize, device: usize, address: usize, size: usize,
                                  page_size: usize, buffer_type: usize, sharding: usize,
                                  bottom_up: usize, sub_device: usize) = {
                    [A B] "_ZN2tt8tt_metal6Buffer6createEPNS0_7IDeviceEmmmNS0_10BufferTypeERKNS0_18BufferShardingArgsESt8optionalIbES8_IN4ttsl10StrongTypeIhNS0_14SubDeviceIdTagEEEE";
                    [C] "_ZN2tt8tt_metal10BufferImpl6createEPNS0_7IDeviceEmmmNS0_10BufferTypeERKNS0_18BufferShardingArgsESt8optionalIbES8_IN4ttsl10StrongTypeIhNS0_14SubDeviceIdTagEEEE";
                }
                // shared_ptr<Buffer> view(BufferRegion const&), in era C with the Buffer as argument.
                view(result: usize, buffer: usize, region: usize) = {
                    [A B] "_ZN2tt8tt_metal6Buffer4viewERKNS0_12BufferRegionE";
                    [C] "_ZN2tt8tt_metal10BufferImpl4viewERNS0_6BufferERKNS0_12BufferRegionE";
                }
                // bool initialize(num_hw_cqs, l1_small_size, trace_region_size, worker_l1_size,
                // span<uint32_t const> l1_bank_remap, bool minimal). The span is ttsl::Span in 0.60.1,
                // which is the same two words.
                mesh_open(mesh: usize, command_queues: usize, l1_small: usize, trace: usize,
                          worker_l1: usize, bank_remap: Span, minimal: usize) = {
                    [A] "_ZN2tt8tt_metal11distributed10MeshDevice10initializeEhmmmN4ttsl4SpanIKjLm18446744073709551615EEEb";
                    [A B C] "_ZN2tt8tt_metal11distributed10MeshDevice10initializeEhmmmSt4spanIKjLm18446744073709551615EEb";
                }
                // The same one level down, where most releases enter; there from 0.66.0 on.
                mesh_impl_open(implementation: usize, mesh: usize, command_queues: usize,
                               l1_small: usize, trace: usize, worker_l1: usize, bank_remap: Span,
                               minimal: usize) = {
                    [B C] "_ZN2tt8tt_metal11distributed14MeshDeviceImpl15initialize_implEPNS1_10MeshDeviceEhmmmSt4spanIKjLm18446744073709551615EEb";
                }
                // bool close()
                mesh_close(mesh: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed10MeshDevice5closeEv";
                }
                // bool close_impl(MeshDevice*), also called by the destructor; from 0.66.0 on.
                mesh_impl_close(implementation: usize, mesh: usize) = {
                    [B C] "_ZN2tt8tt_metal11distributed14MeshDeviceImpl10close_implEPNS1_10MeshDeviceE";
                }
                // bool close()
                device_close(device: usize) = {
                    [A B C] "_ZN2tt8tt_metal6Device5closeEv";
                }
                // void override_state(AllocatorState const&): drops what is allocated, and takes over
                // ranges that another allocator had.
                override_state(allocator: usize, state: usize) = {
                    [A] "_ZN2tt8tt_metal9Allocator14override_stateERKNS0_14AllocatorStateE";
                    [B C] "_ZN2tt8tt_metal13AllocatorImpl14override_stateERKNS0_14AllocatorStateE";
                }
                // void load_sub_device_manager(SubDeviceManagerId), a word by value
                load_sub_devices(device: usize, manager: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed10MeshDevice23load_sub_device_managerEN4ttsl10StrongTypeImNS0_21SubDeviceManagerIdTagEEE";
                    [A B C] "_ZN2tt8tt_metal6Device23load_sub_device_managerEN4ttsl10StrongTypeImNS0_21SubDeviceManagerIdTagEEE";
                }
                // void clear_loaded_sub_device_manager()
                clear_sub_devices(device: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed10MeshDevice31clear_loaded_sub_device_managerEv";
                    [A B C] "_ZN2tt8tt_metal6Device31clear_loaded_sub_device_managerEv";
                }
                // bool GraphTracker::hook_allocate(Buffer const*): true if a capture without dispatch
                // keeps the buffer from being allocated.
                plan(tracker: usize, buffer: usize) = {
                    [A B C] "_ZN2tt8tt_metal12GraphTracker13hook_allocateEPKNS0_6BufferE";
                }
                // void GraphTracker::track_deallocate(Buffer*): the only word of a planned buffer's end.
                unplan(tracker: usize, buffer: usize) = {
                    [A B C] "_ZN2tt8tt_metal12GraphTracker16track_deallocateEPNS0_6BufferE";
                }
                // KernelHandle ProgramImpl::add_kernel(shared_ptr<Kernel> const&,
                // HalProgrammableCoreType const&)
                add_kernel(program: usize, kernel: usize, core_type: usize) = {
                    [A B C] "_ZN2tt8tt_metal6detail11ProgramImpl10add_kernelERKSt10shared_ptrINS0_6KernelEERKNS0_23HalProgrammableCoreTypeE";
                }
                // void ProgramImpl::allocate_circular_buffers(IDevice const*): lays out the program's
                // circular buffers, unless their layout stands.
                lay_out_circular(program: usize, device: usize) = {
                    [A B C] "_ZN2tt8tt_metal6detail11ProgramImpl25allocate_circular_buffersEPKNS0_7IDeviceE";
                }
                // void ProgramImpl::allocate_dataflow_buffers(IDevice const*), from 0.67.0 on.
                lay_out_dataflow(program: usize, device: usize) = {
                    [B C] "_ZN2tt8tt_metal6detail11ProgramImpl25allocate_dataflow_buffersEPKNS0_7IDeviceE";
                }
                // void ProgramImpl::allocate_scratchpads(IDevice const*), from 0.75.0 on.
                lay_out_scratchpads(program: usize, device: usize) = {
                    [B C] "_ZN2tt8tt_metal6detail11ProgramImpl20allocate_scratchpadsEPKNS0_7IDeviceE";
                }
                // void GraphTracker::track_allocate_cb(CoreRangeSet const&, address, size,
                // is_globally_allocated, IDevice const*): once per circular buffer, inside the layout.
                circular_buffer(tracker: usize, cores: usize, address: usize, bytes: usize,
                                global: usize, device: usize) = {
                    [A] "_ZN2tt8tt_metal12GraphTracker17track_allocate_cbERK12CoreRangeSetmmbPKNS0_7IDeviceE";
                    [A B C] "_ZN2tt8tt_metal12GraphTracker17track_allocate_cbERKNS0_12CoreRangeSetEmmbPKNS0_7IDeviceE";
                }
                // void ProgramImpl::CircularBufferAllocator::mark_address(address, size, base): once per
                // local buffer and range of cores, inside the layout. The allocator begins with its range.
                mark_address(range: usize, address: usize, bytes: usize, base: usize) = {
                    [A B C] "_ZN2tt8tt_metal6detail11ProgramImpl23CircularBufferAllocator12mark_addressEmmm";
                }
                // void ProgramImpl::add_circular_buffer_(shared_ptr<CircularBufferImpl> const&)
                add_circular_buffer(program: usize, circular: usize) = {
                    [B C] "_ZN2tt8tt_metal6detail11ProgramImpl20add_circular_buffer_ERKSt10shared_ptrINS0_18CircularBufferImplEE";
                }
                // void ProgramImpl::validate_circular_buffer_region(IDevice const*) and the same for
                // dataflow buffers: throw if the program's region clashes with a buffer in L1.
                validate_region(program: usize, device: usize) = {
                    [A B C] "_ZN2tt8tt_metal6detail11ProgramImpl31validate_circular_buffer_regionEPKNS0_7IDeviceE";
                    [B C] "_ZN2tt8tt_metal6detail11ProgramImpl31validate_dataflow_buffer_regionEPKNS0_7IDeviceE";
                }
                // void MeshWorkloadImpl::add_program(MeshCoordinateRange const&, Program&&)
                enlist(workload: usize, range: usize, program: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed16MeshWorkloadImpl11add_programERKNS1_19MeshCoordinateRangeEONS0_7ProgramE";
                }
                // void EnqueueMeshWorkload(MeshCommandQueue&, MeshWorkload&, bool blocking): dispatches.
                enqueue(queue: usize, workload: usize, blocking: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed19EnqueueMeshWorkloadERNS1_16MeshCommandQueueERNS1_12MeshWorkloadEb";
                }
                // void MeshWorkloadImpl::compile(MeshDevice*): inside the former, tells the mesh.
                compile(workload: usize, mesh: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed16MeshWorkloadImpl7compileEPNS1_10MeshDeviceE";
                }
                // void LaunchProgram(IDevice*, Program&, bool, bool): dispatches without a queue.
                launch(device: usize, program: usize, wait: usize, slow: usize) = {
                    [A B C] "_ZN2tt8tt_metal6detail13LaunchProgramEPNS0_7IDeviceERNS0_7ProgramEbb";
                    [C] "_ZN2tt8tt_metal13slow_dispatch18LaunchProgramAsyncERNS0_7IDeviceERNS0_7ProgramEb";
                }
                // void MeshDevice::reshape(MeshShape const&): gives the chips other coordinates.
                reshape(mesh: usize, shape: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed10MeshDevice7reshapeERKNS1_9MeshShapeE";
                }
                // ProgramImpl::~ProgramImpl()
                program_end(program: usize) = {
                    [A B C] "_ZN2tt8tt_metal6detail11ProgramImplD1Ev";
                    [A B C] "_ZN2tt8tt_metal6detail11ProgramImplD2Ev";
                }
                // void MeshWorkloadImpl::load_binaries(MeshCommandQueue&), and where a program is
                // dispatched without a workload: bool allocate_kernel_bin_buf_on_device(IDevice*). What
                // is allocated inside is for the kernels' binaries.
                load_binaries(workload: usize, queue: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed16MeshWorkloadImpl13load_binariesERNS1_16MeshCommandQueueE";
                    [A B C] "_ZN2tt8tt_metal6detail11ProgramImpl33allocate_kernel_bin_buf_on_deviceEPNS0_7IDeviceE";
                }
                // GlobalSemaphore and what makes one: at most six words, the first of which is the object.
                global_semaphore(object: usize, device: usize, cores: usize, initial: usize,
                                 buffer_type: usize, address: usize) = {
                    [A] "_ZN2tt8tt_metal15GlobalSemaphoreC1EPNS0_7IDeviceERK12CoreRangeSetjNS0_10BufferTypeE";
                    [A] "_ZN2tt8tt_metal15GlobalSemaphoreC1EPNS0_7IDeviceEO12CoreRangeSetjNS0_10BufferTypeE";
                    [A B C] "_ZN2tt8tt_metal15GlobalSemaphoreC1EPNS0_7IDeviceERKNS0_12CoreRangeSetEjNS0_10BufferTypeE";
                    [A B C] "_ZN2tt8tt_metal15GlobalSemaphoreC1EPNS0_7IDeviceEONS0_12CoreRangeSetEjNS0_10BufferTypeE";
                    [B] "_ZN2tt8tt_metal15GlobalSemaphoreC1EPNS0_7IDeviceERKNS0_12CoreRangeSetESt8optionalIjENS0_10BufferTypeEm";
                    [B C] "_ZN2tt8tt_metal12experimental21CreateGlobalSemaphoreEPNS0_7IDeviceERKNS0_12CoreRangeSetESt8optionalIjENS0_10BufferTypeEm";
                    [B C] "_ZN2tt8tt_metal15GlobalSemaphoreC1ERNS0_11distributed10MeshDeviceENS0_12CoreRangeSetEjNS0_10BufferTypeE";
                    [B C] "_ZN2tt8tt_metal21CreateGlobalSemaphoreERNS0_11distributed10MeshDeviceENS0_12CoreRangeSetEjNS0_10BufferTypeE";
                    [B C] "_ZN2tt8tt_metal12experimental21CreateGlobalSemaphoreERNS0_11distributed10MeshDeviceERKNS0_12CoreRangeSetESt8optionalIjENS0_10BufferTypeEm";
                }
                // The same for GlobalCircularBuffer.
                global_circular_buffer(object: usize, device: usize, mapping: usize, bytes: usize,
                                       buffer_type: usize, more: usize) = {
                    [A] "_ZN2tt8tt_metal12experimental20GlobalCircularBufferC1EPNS0_7IDeviceERKSt6vectorISt4pairINS_3umd7xy_pairE12CoreRangeSetESaISA_EEjNS0_10BufferTypeE";
                    [A] "_ZN2tt8tt_metal12experimental20GlobalCircularBufferC1EPNS0_7IDeviceERKSt6vectorISt4pairINS_7xy_pairE12CoreRangeSetESaIS9_EEjNS0_10BufferTypeE";
                    [A B C] "_ZN2tt8tt_metal12experimental20GlobalCircularBufferC1EPNS0_7IDeviceERKSt6vectorISt4pairINS_7xy_pairENS0_12CoreRangeSetEESaIS9_EEjNS0_10BufferTypeE";
                    [B C] "_ZN2tt8tt_metal12experimental20GlobalCircularBufferC1EPNS0_11distributed10MeshDeviceERKSt6vectorISt4pairINS_7xy_pairENS0_12CoreRangeSetEESaISA_EEjNS0_10BufferTypeENS2_13DramSenderTagE";
                    [B C] "_ZN2tt8tt_metal12experimental20GlobalCircularBufferC1ERNS0_11distributed10MeshDeviceERKSt6vectorISt4pairINS_7xy_pairENS0_12CoreRangeSetEESaISA_EEjNS0_10BufferTypeE";
                    [B C] "_ZN2tt8tt_metal12experimental26CreateGlobalCircularBufferERNS0_11distributed10MeshDeviceERKSt6vectorISt4pairINS_7xy_pairENS0_12CoreRangeSetEESaIS9_EEjNS0_10BufferTypeE";
                    [B C] "_ZN2tt8tt_metal12experimental45CreateGlobalCircularBufferForTensorPrefetcherERNS0_11distributed10MeshDeviceERKSt6vectorISt4pairIjNS0_12CoreRangeSetEESaIS8_EEjNS0_10BufferTypeEb";
                }
                // MeshTraceId MeshDevice::begin_mesh_trace(queue): the id is an integer, in one register.
                // The queue is its number or a reference.
                begin_new_trace(device: usize, queue: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed10MeshDevice16begin_mesh_traceEh";
                    [B C] "_ZN2tt8tt_metal11distributed10MeshDevice16begin_mesh_traceERNS1_16MeshCommandQueueE";
                }
                // void MeshDevice::begin_mesh_trace(queue, MeshTraceId const&)
                begin_trace(device: usize, queue: usize, trace: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed10MeshDevice16begin_mesh_traceEhRKN4ttsl10StrongTypeIjNS1_14MeshTraceIdTagEEE";
                    [B C] "_ZN2tt8tt_metal11distributed10MeshDevice16begin_mesh_traceERNS1_16MeshCommandQueueERKN4ttsl10StrongTypeIjNS1_14MeshTraceIdTagEEE";
                }
                // void MeshDevice::end_mesh_trace(queue, MeshTraceId const&)
                end_trace(device: usize, queue: usize, trace: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed10MeshDevice14end_mesh_traceEhRKN4ttsl10StrongTypeIjNS1_14MeshTraceIdTagEEE";
                    [B C] "_ZN2tt8tt_metal11distributed10MeshDevice14end_mesh_traceERNS1_16MeshCommandQueueERKN4ttsl10StrongTypeIjNS1_14MeshTraceIdTagEEE";
                }
                // void MeshDevice::replay_mesh_trace(queue, MeshTraceId const&, bool blocking)
                replay_trace(device: usize, queue: usize, trace: usize, blocking: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed10MeshDevice17replay_mesh_traceEhRKN4ttsl10StrongTypeIjNS1_14MeshTraceIdTagEEEb";
                    [B C] "_ZN2tt8tt_metal11distributed10MeshDevice17replay_mesh_traceERNS1_16MeshCommandQueueERKN4ttsl10StrongTypeIjNS1_14MeshTraceIdTagEEEb";
                }
                // void MeshDevice::release_mesh_trace(MeshTraceId const&)
                release_trace(device: usize, trace: usize) = {
                    [A B C] "_ZN2tt8tt_metal11distributed10MeshDevice18release_mesh_traceERKN4ttsl10StrongTypeIjNS1_14MeshTraceIdTagEEE";
                }
                // void set_hybrid_device_allocators(vector<AllocatorImpl*> const&), from 0.69.0 on, and
                // bool try_begin_hybrid_allocation(the same), from 0.80.0 on: a chip's L1 is about to be
                // given core by core, which the statistics of the chip's allocator leave out.
                hybrid(allocator: usize, allocators: usize) = {
                    [B C] "_ZN2tt8tt_metal13AllocatorImpl28set_hybrid_device_allocatorsERKSt6vectorIPS1_SaIS3_EE";
                    [C] "_ZN2tt8tt_metal13AllocatorImpl27try_begin_hybrid_allocationERKSt6vectorIPS1_SaIS3_EE";
                }
            }
            lookups {
                // DeviceAddr Buffer::aligned_size_per_bank() const: bytes in every bank of the type
                bytes_per_bank: required (buffer: usize) = {
                    [A B C] "_ZNK2tt8tt_metal6Buffer21aligned_size_per_bankEv";
                }
                // uint32_t Buffer::address() const; throws while nothing is allocated
                address: required (buffer: usize) = {
                    [A B C] "_ZNK2tt8tt_metal6Buffer7addressEv";
                }
                // DeviceAddr Buffer::page_size() const: bytes
                page_size: optional (buffer: usize) = {
                    [A B C] "_ZNK2tt8tt_metal6Buffer9page_sizeEv";
                }
                // DeviceAddr Buffer::size() const: bytes
                size: optional (buffer: usize) = {
                    [C] "_ZNK2tt8tt_metal6Buffer4sizeEv";
                }
                // BufferType Buffer::buffer_type() const
                buffer_type: required (buffer: usize) = {
                    [C] "_ZNK2tt8tt_metal6Buffer11buffer_typeEv";
                }
                // IDevice* Buffer::device() const
                device: optional (buffer: usize) = {
                    [C] "_ZNK2tt8tt_metal6Buffer6deviceEv";
                }
                // uint32_t get_num_banks(BufferType const&) const
                num_banks: required (allocator: usize, buffer_type: usize) = {
                    [A] "_ZNK2tt8tt_metal9Allocator13get_num_banksERKNS0_10BufferTypeE";
                    [B C] "_ZNK2tt8tt_metal13AllocatorImpl13get_num_banksERKNS0_10BufferTypeE";
                }
                // DeviceAddr get_bank_size(BufferType const&) const: bytes
                bank_size: optional (allocator: usize, buffer_type: usize) = {
                    [A] "_ZNK2tt8tt_metal9Allocator13get_bank_sizeERKNS0_10BufferTypeE";
                    [B C] "_ZNK2tt8tt_metal13AllocatorImpl13get_bank_sizeERKNS0_10BufferTypeE";
                }
                // uint32_t get_alignment(BufferType) const: bytes
                alignment: optional (allocator: usize, buffer_type: usize) = {
                    [A] "_ZNK2tt8tt_metal9Allocator13get_alignmentENS0_10BufferTypeE";
                    [B C] "_ZNK2tt8tt_metal13AllocatorImpl13get_alignmentENS0_10BufferTypeE";
                }
                // Statistics get_statistics(BufferType const&) const: bytes per bank, four words
                // (allocatable, allocated, free, largest free block), up to 0.68 with a vector behind.
                // Takes the allocator's lock; throws for SYSTEM_MEMORY and types without banks.
                statistics: optional (result: usize, allocator: usize, buffer_type: usize) = {
                    [A] "_ZNK2tt8tt_metal9Allocator14get_statisticsERKNS0_10BufferTypeE";
                    [B C] "_ZNK2tt8tt_metal13AllocatorImpl14get_statisticsERKNS0_10BufferTypeE";
                }
                // unique_ptr<AllocatorImpl> const& MeshDevice::allocator_impl() const
                mesh_allocator: optional (mesh: usize) = {
                    [A] "_ZNK2tt8tt_metal11distributed10MeshDevice9allocatorEv";
                    [B C] "_ZNK2tt8tt_metal11distributed10MeshDevice14allocator_implEv";
                }
                // int MeshDevice::id() const: counted by the process, not a chip's id. Where the virtual
                // table has it, every IDevice has its own.
                mesh_id: optional at = {
                    [A B C] "_ZNK2tt8tt_metal11distributed10MeshDevice2idEv";
                }
                // vector<int> MeshDevice::get_device_ids() const: the chips' ids
                mesh_chips: required (result: usize, mesh: usize) = {
                    [A B C] "_ZNK2tt8tt_metal11distributed10MeshDevice14get_device_idsEv";
                }
                // tt::ARCH MeshDevice::arch() const, likewise
                mesh_arch: optional at = {
                    [A B C] "_ZNK2tt8tt_metal11distributed10MeshDevice4archEv";
                }
                // DeviceAddr get_base_allocator_addr(HalMemType const&) const: the first address that the
                // allocator may use in L1 (0) or DRAM (1)
                base_address: optional (allocator: usize, memory: usize) = {
                    [A] "_ZNK2tt8tt_metal9Allocator23get_base_allocator_addrERKNS0_10HalMemTypeE";
                    [B C] "_ZNK2tt8tt_metal13AllocatorImpl23get_base_allocator_addrERKNS0_10HalMemTypeE";
                }
                // uint32_t MeshDevice::l1_size_per_core() const: bytes
                mesh_l1_bytes: optional (mesh: usize) = {
                    [A B C] "_ZNK2tt8tt_metal11distributed10MeshDevice16l1_size_per_coreEv";
                }
                // uint32_t Device::l1_size_per_core() const: bytes
                device_l1_bytes: optional (device: usize) = {
                    [A B C] "_ZNK2tt8tt_metal6Device16l1_size_per_coreEv";
                }
                // unique_ptr<AllocatorImpl> const& Device::allocator_impl() const
                device_allocator: optional (device: usize) = {
                    [A] "_ZNK2tt8tt_metal6Device9allocatorEv";
                    [B C] "_ZNK2tt8tt_metal6Device14allocator_implEv";
                }
                // vector<pair<start, end>> const& AllocatorState::get_allocated_regions(BufferType) const
                allocated_regions: optional (state: usize, buffer_type: usize) = {
                    [A B C] "_ZNK2tt8tt_metal14AllocatorState21get_allocated_regionsENS0_10BufferTypeE";
                }
                // bool AllocatorState::has_buffer_type(BufferType) const
                has_regions: optional (state: usize, buffer_type: usize) = {
                    [A B C] "_ZNK2tt8tt_metal14AllocatorState15has_buffer_typeENS0_10BufferTypeE";
                }
                // bool is_per_core_allocation(Buffer const&): whether every core has an address of its own
                is_per_core: optional (buffer: usize) = {
                    [B C] "_ZN2tt8tt_metal12experimental19per_core_allocation22is_per_core_allocationERKNS0_6BufferE";
                }
                // optional<uint32_t> Buffer::num_cores() const, in one register
                buffer_cores: optional (buffer: usize) = {
                    [A B C] "_ZNK2tt8tt_metal6Buffer9num_coresEv";
                }
                // vector<CoreRange> const& CoreRangeSet::ranges() const
                core_ranges: optional (cores: usize) = {
                    [A] "_ZNK12CoreRangeSet6rangesEv";
                    [A B C] "_ZNK2tt8tt_metal12CoreRangeSet6rangesEv";
                }
                // uint32_t CoreRangeSet::num_cores() const
                core_count: optional (cores: usize) = {
                    [A] "_ZNK12CoreRangeSet9num_coresEv";
                    [A B C] "_ZNK2tt8tt_metal12CoreRangeSet9num_coresEv";
                }
                // MeshShape const& MeshDevice::shape() const
                mesh_shape: optional (mesh: usize) = {
                    [A B C] "_ZNK2tt8tt_metal11distributed10MeshDevice5shapeEv";
                }
                // size_t MeshShape::dims() const
                shape_dims: optional (shape: usize) = {
                    [A B C] "_ZNK2tt8tt_metal11distributed9MeshShape4dimsEv";
                }
                // size_t MeshShape::get_stride(size_t dimension) const
                shape_stride: optional (shape: usize, dimension: usize) = {
                    [A B C] "_ZNK2tt8tt_metal11distributed9MeshShape10get_strideEm";
                }
                // MeshCoordinate const& MeshCoordinateRange::start_coord() const, end_coord() const
                range_start: optional (range: usize) = {
                    [A B C] "_ZNK2tt8tt_metal11distributed19MeshCoordinateRange11start_coordEv";
                }
                range_end: optional (range: usize) = {
                    [A B C] "_ZNK2tt8tt_metal11distributed19MeshCoordinateRange9end_coordEv";
                }
                // size_t MeshCoordinateRange::dims() const
                range_dims: optional (range: usize) = {
                    [A B C] "_ZNK2tt8tt_metal11distributed19MeshCoordinateRange4dimsEv";
                }
                // uint32_t MeshCoordinate::operator[](int32_t dimension) const
                coordinate: optional (coordinate: usize, dimension: usize) = {
                    [A B C] "_ZNK2tt8tt_metal11distributed14MeshCoordinateixEi";
                }
                // uint64_t ProgramImpl::get_id() const
                program_id: optional (program: usize) = {
                    [A B C] "_ZNK2tt8tt_metal6detail11ProgramImpl6get_idEv";
                }
                // string Kernel::name() const
                kernel_name: optional (result: usize, kernel: usize) = {
                    [A B C] "_ZNK2tt8tt_metal6Kernel4nameB5cxx11Ev";
                }
                // The virtual tables, by which a MeshDevice and a Device are told apart.
                mesh_vtable: required at = {
                    [A B C] "_ZTVN2tt8tt_metal11distributed10MeshDeviceE";
                }
                device_vtable: optional at = {
                    [A B C] "_ZTVN2tt8tt_metal6DeviceE";
                }
            }
        }
    };
}
